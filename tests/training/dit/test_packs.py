"""Training from a pack is training from the cache that it was exported from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import mmldm
from latents.cache.layout import find_cache
from latents.cache.log import CommitLog
from latents.cache.pack_writer import write_pack
from latents.cache.reader import open_cache
from latents.cache.rows import AnnotationRow, rows_to_table
from latents.errors import CacheError, ConfigError
from latents.testing import perceptual_clips
from tests.training.dit.small_runs import small_cache
from tests.training.dit.small_settings import small_settings
from training.dit.files import load_dit
from training.dit.run import METRICS_FILE, RunProgress, train_dit
from training.dit.settings import DiTRunSettings


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pack(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(cache, tmp_path_factory.mktemp("pack") / "p.safetensors")


def packed(cache: str, path: Path, *, ref: str = "current") -> Path:
    return write_pack(open_cache(cache, level="perceptual"), path, ref=ref).path


def run(
    cache: str | Path,
    out: Path,
    settings: DiTRunSettings | None = None,
    *,
    ref: str = "current",
    resume: bool = False,
) -> list[RunProgress]:
    told: list[RunProgress] = []
    train_dit(
        cache,
        settings or small_settings(),
        out=out,
        ref=ref,
        resume=resume,
        device="cpu",
        on_progress=told.append,
    )
    return told


def config(out: Path) -> dict[str, Any]:
    """All that a model's folder says of it, but for where the latents were."""
    found: dict[str, Any] = json.loads((out / "config.json").read_text())
    for cache in found["trained_on"]["caches"]:
        del cache["cache"]
    return found


def assert_same_models(one: Path, other: Path) -> None:
    weights, others = (load_file(out / "model.safetensors") for out in (one, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert tensor.tobytes() == others[name].tobytes()
    assert config(one) == config(other)
    assert (one / METRICS_FILE).read_bytes() == (other / METRICS_FILE).read_bytes()


@pytest.mark.parametrize("draw", ["mode", "sample"])
def test_a_pack_and_its_cache_give_equal_models(
    draw: str, cache: str, pack: Path, tmp_path: Path
) -> None:
    settings = small_settings(data={"draw": draw})
    run(cache, tmp_path / "cache", settings)
    run(pack, tmp_path / "pack", settings)

    assert_same_models(tmp_path / "pack", tmp_path / "cache")
    assert load_dit(tmp_path / "pack").trained_on.caches[0].cache == str(pack)


def test_splits_that_people_named_hold_in_a_pack(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "cache")
    splits = ["train"] * 3 + ["validation"] * 2 + ["test"] * 3
    rows = [
        AnnotationRow(source=clip.key.source_digest, label=None, caption=None, split=split)
        for clip, split in zip(perceptual_clips(8), splits, strict=True)
    ]
    layout = find_cache(cache)
    CommitLog(layout).append({"annotations": rows_to_table("annotations", rows)}, {})
    assert mmldm.main(["cache", "refs", "set", "current", "--commit", "4", "--cache", cache]) == 0

    run(cache, tmp_path / "one")
    told = run(packed(cache, tmp_path / "p.safetensors"), tmp_path / "other")

    assert_same_models(tmp_path / "one", tmp_path / "other")
    assert told[0].train.epoch == 4 / 15
    assert told[-1].validation is not None
    assert told[-1].validation.num_windows == 8


def test_a_run_on_a_cache_goes_on_from_its_pack(cache: str, pack: Path, tmp_path: Path) -> None:
    whole = small_settings(optimisation={"steps": 9})
    run(cache, tmp_path / "whole", whole)

    run(cache, tmp_path / "parts", small_settings(validation={"every_steps": 9}))
    told = run(pack, tmp_path / "parts", whole, resume=True)

    assert [one.train.step for one in told] == [7, 8, 9]
    weights, others = (
        load_file(tmp_path / out / "model.safetensors") for out in ("whole", "parts")
    )
    for name, tensor in weights.items():
        np.testing.assert_array_equal(tensor, others[name])


def test_a_pack_of_other_latents_does_not_resume_a_run(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    other = packed(small_cache(tmp_path / "other", seed=1), tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match=r"cache\.whitening\.video\.mean"):
        run(other, tmp_path / "run", resume=True)


def test_a_pack_is_of_one_ref(cache: str, tmp_path: Path) -> None:
    pack = packed(cache, tmp_path / "p.safetensors", ref="mine")
    with pytest.raises(ConfigError, match="was exported from ref 'mine', not from 'theirs'"):
        run(pack, tmp_path / "run", ref="theirs")
    one_step = small_settings(optimisation={"steps": 1})
    assert len(run(pack, tmp_path / "run", one_step, ref="mine")) == 1


def test_a_pack_without_windows_to_train_on_is_refused(pack: Path, tmp_path: Path) -> None:
    settings = small_settings(data={"validation_share": 0.9999})
    with pytest.raises(CacheError, match=r"p\.safetensors has no window to train on: its 8 clips"):
        run(pack, tmp_path / "run", settings)


def test_a_file_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_text("no pack")
    with pytest.raises(CacheError, match="is no pack, or not a whole one"):
        run(path, tmp_path / "run")


def test_training_from_a_pack_needs_no_package_of_the_log(pack: Path, tmp_path: Path) -> None:
    blocked = (
        "pyarrow google_crc32c obstore rich ray decord av diffusers transformers librosa "
        "torchaudio PIL webdataset zarr pipeline evaluation latents.models latents.store "
        "latents.cache.reader"
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked.split()!r}))
from pathlib import Path
from tests.training.dit.small_settings import small_settings
from training.dit.run import train_dit
trained = train_dit({str(pack)!r}, small_settings(), out=Path({str(tmp_path / "run")!r}),
                    ref="current", resume=False, device="cpu", on_progress=lambda progress: None)
print(trained.steps)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    assert load_dit(tmp_path / "run").steps == 6


def test_the_command_takes_a_pack(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "small.toml"
    preset.write_text(
        "[model]\ndepth = 1\nwidth = 32\nnum_heads = 2\ncontext_tokens = 3\ncontext_width = 8\n"
        "latent_channels = 2\nvideo_size = 4\naudio_size = 2\n"
        "[optimisation]\nsteps = 1\nbatch_size = 4\n"
    )
    arguments = ["--cache", str(pack), "--out", str(tmp_path / "run"), "--preset", str(preset)]
    assert mmldm.main(["train", "dit", *arguments, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
