"""What a run notes in its folder while it goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from latents.cache.gc import plan_gc
from latents.cache.verify import verify_cache
from latents.errors import InterruptedJobError
from pipeline.run_folder import LINES_FILE, METRICS_FILE, RUN_FILE, RunFolder, runs_folder
from tests.pipeline.small_jobs import SCENES, SmallCache, SmallJob, WatchedEngine
from tests.pipeline.test_progress import FIGURES


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LINES_FILE).read_text().splitlines()]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every few hundredths of a second."""
    monkeypatch.setattr("pipeline.run_watch.SHOW_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.run_watch.NOTE_SECONDS", 0.02)


def test_the_lines_of_a_run_come_to_its_result(
    tmp_path: Path, small_kl_vae: Path, decode_in_process: None, often: None
) -> None:
    cache = SmallCache(tmp_path / "cache")
    (tmp_path / "text.mp4").write_text("this is no video")

    result = cache.run(SmallJob(kl_vae=small_kl_vae), SCENES, str(tmp_path / "text.mp4"))

    (run,) = (tmp_path / "cache" / "runs").iterdir()
    *before, last = lines_of(run)
    assert {line["state"] for line in before} == {"running"}
    counts = [line["num_clips"] for line in (*before, last)]
    assert counts == sorted(counts)
    assert (last["state"], last["num_done"], last["num_total"]) == ("ended", 5, 5)
    assert not last["is_stopping"]
    assert last["num_clips"] == result.num_clips_encoded == 4
    assert last["num_windows"] == result.num_windows_encoded > 0
    assert last["num_images"] == result.num_kl_images
    assert last["num_quarantined"] == result.num_quarantined == 1
    assert last["causes"] == result.causes == {"DecodeError": 1}
    assert set(last["stages"]) == set(result.busy_shares) == {"decode", "encode", "commit"}
    assert all(0 <= share <= 1 for share in result.busy_shares.values())
    assert 'mmldm_clips_total{run="' in (run / METRICS_FILE).read_text()


def test_a_run_is_no_part_of_its_cache(
    tmp_path: Path, small_kl_vae: Path, decode_in_process: None
) -> None:
    cache = SmallCache(tmp_path / "cache")
    cache.run(SmallJob(kl_vae=small_kl_vae), "scenes:0:1:2")
    (run,) = (tmp_path / "cache" / "runs").iterdir()

    assert verify_cache(cache.layout) == []
    garbage = plan_gc(cache.layout, grace_seconds=0).garbage
    assert not [one for one in garbage if one.name.startswith("runs/")]
    assert {file.name for file in run.iterdir()} == {RUN_FILE, LINES_FILE, METRICS_FILE}


def test_a_run_with_nothing_to_do_notes_nothing(
    tmp_path: Path, small_kl_vae: Path, decode_in_process: None
) -> None:
    cache, job = SmallCache(tmp_path / "cache"), SmallJob(kl_vae=small_kl_vae)
    cache.run(job, "scenes:0:1:2")
    cache.run(job, "scenes:0:1:2")
    assert len(list((tmp_path / "cache" / "runs").iterdir())) == 1


def test_the_last_line_says_that_and_why_a_run_was_interrupted(
    tmp_path: Path, small_kl_vae: Path, decode_in_process: None
) -> None:
    engine = WatchedEngine(lambda event: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(InterruptedJobError):
        SmallCache(tmp_path / "cache", engine).run(SmallJob(kl_vae=small_kl_vae), SCENES)

    (run,) = (tmp_path / "cache" / "runs").iterdir()
    last = lines_of(run)[-1]
    assert (last["state"], last["is_stopping"]) == ("interrupted", True)
    assert "SIGTERM" in last["error"]


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "runs").write_text("in the way")
    folder = RunFolder(str(tmp_path), purpose="ingest", unit="sources")
    folder.note(FIGURES)
    folder.note(FIGURES, state="ended")
    assert len(caplog.records) == 1
    assert "figures are not noted" in caplog.text


def test_runs_on_a_cache_without_a_folder_lie_in_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs_folder("s3://bucket/cache") == tmp_path / ".cache" / "mmldm" / "runs"
    assert runs_folder(str(tmp_path / "c")) == tmp_path / "c" / "runs"


def test_two_runs_of_a_process_within_a_second_have_folders_of_their_own(tmp_path: Path) -> None:
    first, second = (RunFolder(str(tmp_path), purpose="ingest", unit="sources") for _ in "ab")
    assert first.path != second.path
