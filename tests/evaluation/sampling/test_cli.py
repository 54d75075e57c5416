"""``mmldm sample``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from evaluation.cli_sample import add_sample
from evaluation.sampling import run
from latents.errors import ConfigError, InterruptedJobError, ModelError, SourceError
from tests.evaluation.sampling.small_models import SmallModels
from tests.evaluation.sampling.test_hifigan import V1, make_hifigan


def sample(models: SmallModels, out: Path, *more: str, dit: str | None = None) -> int:
    parser = argparse.ArgumentParser()
    add_sample(parser.add_subparsers())
    arguments = parser.parse_args(
        [
            "sample",
            dit or str(models.dit),
            *("--out", str(out), "--steps", "2", "--device", "cpu"),
            *("--autoencoder", models.sources.autoencoder, "--kl-vae", models.sources.kl_vae),
            *more,
        ]
    )
    status: int = arguments.run(arguments)
    return status


def test_four_videos_are_sampled_from_nothing(
    models: SmallModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(models, tmp_path / "out", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    files = sorted((tmp_path / "out").glob("*.mp4"))
    assert told == {"files": [str(path) for path in files], "num_written": 4}
    assert len(files) == 4


def test_each_file_given_is_a_sample(
    models: SmallModels, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "v2a", "--condition", str(video), str(video)]

    assert sample(models, tmp_path / "out", *options) == 0
    assert sample(models, tmp_path / "out", *options) == 0

    assert "2 samples, v2a_s0_00000.mp4 the first" in capsys.readouterr().out.splitlines()[0]
    record = json.loads((tmp_path / "out" / "v2a_s0.json").read_bytes())
    assert [one["name"] for one in record["conditions"]] == [str(video)] * 2
    assert record["made_by"]["num_steps"] == 2


def test_all_samples_go_by_the_one_file_that_is_given(
    models: SmallModels, video: Path, tmp_path: Path
) -> None:
    options = ["--task", "a2v", "--num", "2", "--condition", str(video)]

    assert sample(models, tmp_path / "out", *options) == 0

    record = json.loads((tmp_path / "out" / "a2v_s0.json").read_bytes())
    assert [one["name"] for one in record["conditions"]] == [str(video)] * 2


def test_tiny_is_the_bundled_dit_and_a_folder_of_that_name_another(
    models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models.dit, tmp_path / "tiny")

    assert sample(models, tmp_path / "out", "--num", "1", dit="./tiny") == 0

    # Its latents are those of the bundled autoencoder, not of the small one.
    with pytest.raises(ModelError, match="video encoder of this autoencoder has weights"):
        sample(models, tmp_path / "bundled", dit="tiny")


def test_a_vocoder_is_used(models: SmallModels, tmp_path: Path) -> None:
    vocoder = make_hifigan(tmp_path / "vocoder", **V1)

    sample(models, tmp_path / "plain", "--num", "1")
    sample(models, tmp_path / "vocoded", "--num", "1", "--vocoder", str(vocoder))

    plain, vocoded = (
        (tmp_path / name / "svg_s0_00000.mp4").read_bytes() for name in ("plain", "vocoded")
    )
    assert plain != vocoded


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--condition", "{video}"], "svg samples from nothing"),
        (["--task", "a2v"], "4 samples were asked for, and 0 windows given"),
        (
            ["--task", "a2v", "--num", "3", "--condition", "{video}", "{video}"],
            "3 samples .* 2 windows",
        ),
        (["--task", "a2v", "--clip", "K"], "--cache C and --clip .* go together"),
        (["--task", "a2v", "--cache", "C"], "--cache C and --clip .* go together"),
        (
            ["--task", "a2v", "--cache", "C", "--clip", "K", "--condition", "{video}"],
            "not by both",
        ),
        (["--guidance", "nan"], "must be finite"),
        (["--device", "abacus"], "wanted auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_use_is_told(
    options: list[str], problem: str, models: SmallModels, video: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        sample(models, tmp_path / "out", *(option.format(video=video) for option in options))
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(models: SmallModels, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        sample(models, tmp_path / "out", "--task", "a2v", "--condition", "nothing.mp4")
    with pytest.raises(ModelError, match="no autoencoder"):
        sample(models, tmp_path / "out", "--autoencoder", str(tmp_path))
    with pytest.raises(ModelError, match="no vocoder"):
        sample(models, tmp_path / "out", "--vocoder", str(tmp_path))


def test_ctrl_c_says_how_to_go_on(
    models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_video", interrupt)

    with pytest.raises(InterruptedJobError, match=r"every mp4 .* is whole. Run the same command"):
        sample(models, tmp_path / "out")
