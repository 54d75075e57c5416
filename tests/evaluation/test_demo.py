from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.demo import DemoResult, run_demo
from latents.cache.reader import open_cache
from latents.cache.verify import verify_cache
from latents.errors import CacheError, InterruptedJobError
from pipeline.engine_local import LocalEngine
from pipeline.run import Engine
from pipeline.settings import IngestSettings
from pipeline.synth import synthesise


def local_engine() -> Engine:
    return LocalEngine(num_workers=1)


def demo(
    out: Path,
    settings: IngestSettings,
    said: list[str],
    *,
    clips: Path | None = None,
    open_engine: Callable[[], Engine] = local_engine,
) -> DemoResult:
    return run_demo(
        out,
        clips=clips,
        num_clips=1,
        seconds=2,
        settings=settings,
        device="cpu",
        open_engine=open_engine,
        say=said.append,
    )


def test_a_demo_ends_with_a_verified_cache_and_a_report(
    small_settings: IngestSettings, tmp_path: Path
) -> None:
    said: list[str] = []
    result = demo(tmp_path / "out", small_settings, said)

    level = open_cache(result.cache, level="kl")
    assert [path.name for path in (tmp_path / "out" / "scenes").glob("*.mp4")] == [
        "clip_00000_bouncing_ball.mp4"
    ]
    assert len(level) == 1
    assert verify_cache(level.layout) == []
    assert result.report.read_text().count("<video") == 2
    assert any(result.content_digest in line for line in said)
    assert any(str(result.report) in line for line in said)
    assert [line[:5] for line in said if line.startswith("[")] == [f"[{n}/4]" for n in (1, 2, 3, 4)]


def test_run_again_it_encodes_nothing_and_keeps_the_report(
    small_settings: IngestSettings, tmp_path: Path
) -> None:
    said: list[str] = []
    first = demo(tmp_path, small_settings, [])
    written = first.report.stat().st_mtime_ns

    second = demo(tmp_path, small_settings, said)

    assert first.job.num_clips_encoded == 1
    assert (second.job.num_clips_encoded, second.job.num_already_present) == (0, 1)
    assert second.content_digest == first.content_digest
    assert second.report.stat().st_mtime_ns == written
    assert any("kept" in line for line in said)


def test_after_ctrl_c_it_goes_on(small_settings: IngestSettings, tmp_path: Path) -> None:
    def interrupt() -> Engine:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError, match="same command again") as caught:
        demo(tmp_path, small_settings, [], open_engine=interrupt)

    assert caught.value.signal_number == signal.SIGINT
    assert demo(tmp_path, small_settings, []).job.num_clips_encoded == 1


def test_a_broken_clip_is_named_and_is_no_failure(
    small_settings: IngestSettings, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    synthesise(clips, num_clips=1, seconds=2, seed=0, height=64, width=64)
    (clips / "broken.mp4").write_bytes(b"not a video")
    said: list[str] = []

    result = demo(tmp_path / "out", small_settings, said, clips=clips)

    assert result.job.num_quarantined == 1
    assert "broken.mp4" in result.report.read_text()
    assert any("mmldm cache quarantine ls" in line for line in said)
    assert not (tmp_path / "out" / "scenes").exists()


def test_where_nothing_becomes_a_clip_it_fails(
    small_settings: IngestSettings, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")

    with pytest.raises(CacheError, match="none of the 1 sources"):
        demo(tmp_path / "out", small_settings, [], clips=tmp_path / "clips")


def test_a_damaged_cache_is_not_reported_on(small_settings: IngestSettings, tmp_path: Path) -> None:
    result = demo(tmp_path, small_settings, [])
    result.report.unlink()
    (shard,) = (result.cache / "shards").glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)

    with pytest.raises(CacheError, match="is damaged in"):
        demo(tmp_path, small_settings, [])

    assert not result.report.exists()
