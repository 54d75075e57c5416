"""``mmldm train dit``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mmldm
from tests.training.dit.small_runs import small_cache
from tests.training.dit.small_settings import MODEL

PRESET = """
[model]
{model}

[optimisation]
steps = 4
batch_size = 4

[data]
validation_share = 0.3

[validation]
every_steps = 2
num_windows = 4
draws = 1
"""


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    model = "\n".join(f"{name} = {value}" for name, value in MODEL.items())
    path.write_text(PRESET.format(model=model))
    return str(path)


@pytest.mark.parametrize(
    ("preset", "num_parameters", "gmacs"),
    [("S", 131.6e6, 34.0), ("B", 384.5e6, 100.6), ("L", 1543.7e6, 407.3), ("XL", 677.7e6, 178.2)],
)
def test_the_papers_sizes_are_described(
    preset: str, num_parameters: float, gmacs: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mmldm.main(["train", "dit", "--preset", preset, "--describe", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == pytest.approx(num_parameters, rel=1e-3)
    assert found["gmacs"] == pytest.approx(gmacs, rel=1e-3)
    assert found["num_tokens"] == 399


def test_a_run_is_trained_and_told(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = small_cache(tmp_path / "cache")
    arguments = ["train", "dit", "--cache", cache, "--out", str(tmp_path / "run")]
    arguments += ["--preset", preset, "--device", "cpu"]

    assert mmldm.main([*arguments, "--json"]) == 0

    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["steps"] == 4
    assert found["losses"].keys() > {"svg", "a2v", "v2a", "linear"}
    assert "held out (4 windows, video/audio)  svg" in told.err
    noted = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert found["losses"] == json.loads(noted[-1])["validation"]["losses"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]


def test_a_run_needs_a_cache_and_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmldm.main(["train", "dit"]) == 2
    assert "training needs --cache C and --out D" in capsys.readouterr().err


def test_a_cache_without_the_perceptual_level_is_refused(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latents.testing import make_cache

    cache = make_cache(tmp_path / "cache").url
    arguments = ["train", "dit", "--cache", cache, "--out", str(tmp_path / "run")]

    assert mmldm.main([*arguments, "--preset", preset]) == 1
    assert "has no perceptual.video" in capsys.readouterr().err
