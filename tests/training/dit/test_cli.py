"""``mmldm train dit``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mmldm
from latents.errors import ConfigError
from tests.training.dit.small_runs import small_cache
from tests.training.dit.small_settings import MODEL
from training.dit.chosen_caches import ChosenCache, chosen_caches
from training.dit.files import load_dit

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


@pytest.mark.parametrize(
    ("written", "cache", "weight"),
    [
        ("cache", "cache", 1.0),
        ("cache=2", "cache", 2.0),
        ("p.safetensors=0.5", "p.safetensors", 0.5),
        ("cache=1e-1", "cache", 0.1),
        ("cache=.5", "cache", 0.5),
        ("s3://bucket/cache?region=eu", "s3://bucket/cache?region=eu", 1.0),
        ("s3://bucket/cache?region=eu=3.", "s3://bucket/cache?region=eu", 3.0),
        ("s3://bucket/cache?part=7=1", "s3://bucket/cache?part=7", 1.0),
        ("there=2", "there=2", 1.0),
        ("there=2=3", "there=2", 3.0),
        ("cache=", "cache=", 1.0),
        ("=2", "=2", 1.0),
    ],
)
def test_a_number_behind_a_cache_is_its_weight(written: str, cache: str, weight: float) -> None:
    (found,) = chosen_caches([written], [], is_path=lambda path: path == "there=2")
    assert found == ChosenCache(cache=cache, ref="current", weight=weight)


@pytest.mark.parametrize(
    "written", ["cache=0", "cache=-1", "cache=1e9", "cache=1e999", "cache=nan"]
)
def test_a_weight_out_of_range_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match=f"--cache {written}: the weight is .* above 0"):
        chosen_caches([written], [], is_path=lambda path: False)


@pytest.mark.parametrize(
    ("refs", "wanted"),
    [([], ["current"] * 3), (["mine"], ["mine"] * 3), (["a", "b", "a"], ["a", "b", "a"])],
)
def test_a_ref_is_of_all_caches_or_of_each(refs: list[str], wanted: list[str]) -> None:
    found = chosen_caches(["A", "B=2", "C"], refs, is_path=lambda path: False)
    assert [one.ref for one in found] == wanted
    assert [one.cache for one in found] == ["A", "B", "C"]


@pytest.mark.parametrize(("caches", "refs"), [(["A", "B", "C"], ["a", "b"]), (["A"], ["a", "b"])])
def test_another_number_of_refs_is_refused(caches: list[str], refs: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"2 of --ref and {len(caches)} of --cache"):
        chosen_caches(caches, refs, is_path=lambda path: False)


def test_several_caches_are_trained_on_together(preset: str, tmp_path: Path) -> None:
    one, other = (small_cache(tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
    named = ["--cache", one, "--cache", f"{other}=2", "--ref", "current"]
    arguments = [*named, "--out", str(tmp_path / "run"), "--preset", preset, "--device", "cpu"]

    assert mmldm.main(["train", "dit", *arguments]) == 0

    caches = load_dit(tmp_path / "run").trained_on.caches
    assert [(found.cache, found.weight) for found in caches] == [(one, 1.0), (other, 2.0)]


def test_a_weight_of_the_only_cache_is_refused(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--cache", "mine=2", "--out", str(tmp_path / "run"), "--preset", preset]
    assert mmldm.main(["train", "dit", *arguments]) == 2
    assert "mine has weight 2, which means something only beside another cache" in (
        capsys.readouterr().err
    )
