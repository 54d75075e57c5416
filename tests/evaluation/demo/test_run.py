from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from evaluation.demo.model_steps import fitted
from evaluation.demo.run import DemoResult
from latents.cache.reader import open_cache
from latents.cache.verify import verify_cache
from latents.errors import CacheError, ConfigError, InterruptedJobError
from pipeline.run import Engine
from pipeline.synth import synthesise
from tests.evaluation.demo.small_demo import small_demo, small_plan
from training.dit.files import load_dit
from training.optim import OptimisationSettings


@pytest.fixture(scope="module")
def finished(
    small_kl_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DemoResult, list[str]]:
    """A demo that has run, and what it said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("demo")
    return small_demo(out, small_plan(small_kl_vae), said), said


def test_a_demo_ends_with_a_verified_cache_at_both_levels(
    finished: tuple[DemoResult, list[str]],
) -> None:
    result, said = finished

    for level, digest in (("kl", result.kl_digest), ("perceptual", result.perceptual_digest)):
        opened = open_cache(result.cache, level=level)  # type: ignore[arg-type]
        assert len(opened) == 2
        assert verify_cache(opened.layout) == []
        assert any(digest in line for line in said)


def test_it_says_each_of_its_steps(finished: tuple[DemoResult, list[str]]) -> None:
    _, said = finished

    assert [line[:5] for line in said if line.startswith("[")] == [f"[{n}/8]" for n in range(1, 9)]


def test_it_trains_models_and_samples_each_task(finished: tuple[DemoResult, list[str]]) -> None:
    result, _ = finished
    models = result.models

    assert load_dit(models.dit).steps == 4
    assert sorted(path.name for path in models.samples.glob("*.mp4")) == [
        "a2v_s0_00000.mp4",
        "svg_s0_00000.mp4",
        "v2a_s0_00000.mp4",
    ]


def test_run_again_it_does_nothing_anew(
    finished: tuple[DemoResult, list[str]], small_kl_vae: Path
) -> None:
    first, _ = finished
    out = first.report.parent
    before = {path: path.stat().st_mtime_ns for path in _made(first)}
    said: list[str] = []

    second = small_demo(out, small_plan(small_kl_vae), said)

    assert (second.job.num_clips_encoded, second.job.num_already_present) == (0, 2)
    assert (second.kl_digest, second.perceptual_digest) == (
        first.kl_digest,
        first.perceptual_digest,
    )
    assert {path: path.stat().st_mtime_ns for path in _made(second)} == before
    assert sum("kept" in line for line in said) == 3  # both models and the report


@pytest.mark.slow
def test_other_clips_get_models_of_their_own(
    finished: tuple[DemoResult, list[str]], small_kl_vae: Path, tmp_path: Path
) -> None:
    first, _ = finished

    other = small_demo(tmp_path, small_plan(small_kl_vae, num_clips=1), [])

    assert other.models.root.name != first.models.root.name
    assert other.perceptual_digest != first.perceptual_digest


@pytest.mark.slow
def test_after_ctrl_c_it_goes_on(small_kl_vae: Path, tmp_path: Path) -> None:
    def interrupt() -> Engine:
        raise KeyboardInterrupt

    plan = small_plan(small_kl_vae, num_clips=1)
    with pytest.raises(InterruptedJobError, match="same command again") as caught:
        small_demo(tmp_path, plan, [], open_engine=interrupt)

    assert caught.value.signal_number == signal.SIGINT
    assert small_demo(tmp_path, plan, []).job.num_clips_encoded == 1


@pytest.mark.slow
def test_a_broken_clip_is_named_and_is_no_failure(small_kl_vae: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    synthesise(clips, num_clips=1, seconds=2, seed=0, height=64, width=64)
    (clips / "broken.mp4").write_bytes(b"not a video")
    said: list[str] = []

    result = small_demo(tmp_path / "out", small_plan(small_kl_vae), said, clips=clips)

    assert result.job.num_quarantined == 1
    assert "broken.mp4" in result.report.read_text()
    assert any("mmldm cache quarantine ls" in line for line in said)
    assert not (tmp_path / "out" / "scenes").exists()
    assert sum(line.startswith("[") for line in said) == 7


def test_where_nothing_becomes_a_clip_it_fails(small_kl_vae: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")

    with pytest.raises(CacheError, match="none of the 1 sources"):
        small_demo(tmp_path / "out", small_plan(small_kl_vae), [], clips=tmp_path / "clips")


def test_a_damaged_cache_is_not_trained_on(
    finished: tuple[DemoResult, list[str]], small_kl_vae: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0].report.parent, tmp_path / "demo")
    (out / "report.html").unlink()
    for shard in (out / "cache" / "shards").glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(content)

    with pytest.raises(CacheError, match="is damaged in"):
        small_demo(out, small_plan(small_kl_vae), [])

    assert not (out / "report.html").exists()


def test_a_demo_among_the_videos_it_is_to_take_is_refused(
    small_kl_vae: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()

    with pytest.raises(ConfigError, match="name another folder with --out"):
        small_demo(clips / "out", small_plan(small_kl_vae), [], clips=clips)


def test_clips_after_scenes_are_the_only_ones_left(
    finished: tuple[DemoResult, list[str]], small_kl_vae: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0].report.parent, tmp_path / "demo")
    (out / "scenes").rename(tmp_path / "clips")
    next((tmp_path / "clips").glob("*.mp4")).unlink()

    result = small_demo(out, small_plan(small_kl_vae), [], clips=tmp_path / "clips")

    assert len(open_cache(result.cache, level="perceptual")) == 1


@pytest.mark.parametrize(
    ("num_windows", "steps", "decay_steps"), [(1000, 300, 150), (60, 150, 75), (4, 10, 5)]
)
def test_few_windows_are_trained_on_for_fewer_steps(
    num_windows: int, steps: int, decay_steps: int
) -> None:
    settings = OptimisationSettings(steps=300, batch_size=16, warmup_steps=30, decay_steps=150)

    fit = fitted(settings, num_windows)

    assert (fit.steps, fit.decay_steps) == (steps, decay_steps)


def _made(result: DemoResult) -> list[Path]:
    """The files of models, samples and report."""
    made = [path for path in result.models.root.rglob("*") if path.is_file()]
    # The record of samples is written before any is made, with the same content.
    return [result.report, *(path for path in made if path.parent != result.models.samples)]
