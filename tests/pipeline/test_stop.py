"""A run that is asked to stop finishes what is in hand, or leaves it when asked again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latents.clip import Clip
from latents.errors import InterruptedJobError
from pipeline.committer import Committer
from pipeline.decode import DecodeEvent, SourceTask, decode_source
from pipeline.status import find_run, read_status
from pipeline.stop_request import StopRequest
from pipeline.stop_signals import StopSignals
from tests.pipeline.small_jobs import SmallCache, SmallJob
from tests.pipeline.unruly_decode import NOTES


class WatchedDecoder:
    """Decodes in process, and shows each clip to someone before it gives it."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self._look = look
        self.num_clips = 0
        self.begun: list[str] = []

    def __call__(self, **_: object) -> WatchedDecoder:
        return self

    def decode(self, task: SourceTask, **options: Any) -> Iterator[DecodeEvent]:
        self.begun.append(task.uri)
        for event in decode_source(task, **options):
            if isinstance(event, Clip):
                self.num_clips += 1
                self._look(self.num_clips)
            yield event

    def close(self) -> None:
        pass


def send_at(clip: int, number: signal.Signals, *, times: int = 1) -> Callable[[int], None]:
    """While this clip is decoded a signal comes and is handled, by the main thread."""

    def look(found: int) -> None:
        for _ in range(times if found == clip else 0):
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    return look


@pytest.fixture
def one(small_kl_vae: Path) -> SmallJob:
    """The kl level by one worker, of segments of 2 s."""
    overrides = ("clip.segment_seconds=2", "clip.tail_frames=5")
    return SmallJob(kl_vae=small_kl_vae, overrides=overrides)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_clip_in_hand_is_finished_and_committed_and_no_source_is_begun(
    number: signal.Signals, tmp_path: Path, one: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = WatchedDecoder(send_at(2, number))
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", decoder)
    cache = SmallCache(tmp_path / "cache")

    with pytest.raises(InterruptedJobError, match=f"{number.name}; what was finished is committed"):
        cache.run(one, "scenes:0:4:2")

    rows = cache.committed(since=-1)
    assert len(rows["latents"]) == 2 * 2
    assert len(rows["sources"]) == 2
    assert len(decoder.begun) == 2
    assert "quarantine" not in rows
    assert cache.run(one, "scenes:0:4:2").num_clips_encoded == 2


def test_a_long_source_ends_after_the_segment_in_hand_and_goes_on_from_there(
    tmp_path: Path, one: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", WatchedDecoder(send_at(2, signal.SIGINT)))
    cache = SmallCache(tmp_path / "cache")

    with pytest.raises(InterruptedJobError):
        cache.run(one, "scenes:0:1:8")

    rows = cache.committed(since=-1)
    assert {row["segment"] for row in rows["latents"]} == {0, 1}
    assert "sources" not in rows
    again = cache.run(one, "scenes:0:1:8")
    assert (again.num_clips_encoded, again.num_sources_with_rows) == (2, 1)


def test_asked_twice_a_run_leaves_the_clip_in_hand(
    tmp_path: Path, one: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = WatchedDecoder(send_at(2, signal.SIGINT, times=2))
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", decoder)
    cache = SmallCache(tmp_path / "cache")

    with pytest.raises(InterruptedJobError):
        cache.run(one, "scenes:0:4:2")

    assert len(cache.committed(since=-1)["latents"]) == 1 * 2


def test_a_signal_during_the_last_commit_is_held_until_it_is_written(
    tmp_path: Path, one: SmallJob, monkeypatch: pytest.MonkeyPatch, decode_in_process: None
) -> None:
    flush = Committer.flush

    def interrupted(committer: Committer) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        flush(committer)

    monkeypatch.setattr(Committer, "flush", interrupted)
    cache = SmallCache(tmp_path / "cache")

    with pytest.raises(InterruptedJobError):
        cache.run(one, "scenes:0:1:2")

    assert len(cache.committed(since=-1)["latents"]) == 2


def test_a_third_signal_acts_as_it_would_have_before() -> None:
    stop = StopRequest(drain_seconds=60)
    signals = StopSignals(stop)
    with signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_asked
        assert not stop.is_now
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_now
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == [signal.SIGINT, signal.SIGTERM]


class HungJob:
    """A run of which one source is done, and the next one's decoder hangs."""

    def __init__(self, folder: Path, kl_vae: Path, *, drain_seconds: int) -> None:
        self.cache, notes = folder / "cache", folder / "notes"
        command = [sys.executable, "-m", "tests.pipeline.hung_job", str(self.cache), str(kl_vae)]
        self.process = subprocess.Popen(
            [*command, str(drain_seconds)],
            env=os.environ | {NOTES: str(notes)},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        while not notes.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    def seconds_to_end(self) -> float:
        """From now until all is committed; the interpreter takes its own time to leave."""
        started = time.monotonic()
        while read_status(find_run(str(self.cache))).state != "interrupted":
            assert time.monotonic() - started < 60, "it does not end"
            time.sleep(0.02)
        seconds = time.monotonic() - started
        self.process.communicate(timeout=60)
        return seconds

    def num_rows(self) -> dict[str, int]:
        """Rows by kind that were committed."""
        committed = SmallCache(self.cache).committed(since=-1)
        return {kind: len(rows) for kind, rows in committed.items()}


@pytest.mark.slow
def test_with_a_hung_decoder_a_group_that_is_terminated_ends_by_the_deadline_and_commits(
    tmp_path: Path, small_kl_vae: Path
) -> None:
    job = HungJob(tmp_path, small_kl_vae, drain_seconds=2)
    os.killpg(job.process.pid, signal.SIGTERM)
    assert 1 < job.seconds_to_end() < 2 + 4
    assert job.process.returncode == 128 + signal.SIGTERM
    assert job.num_rows() == {"latents": 2, "sources": 1}


@pytest.mark.slow
def test_with_a_hung_decoder_two_signals_end_a_run_at_once(
    tmp_path: Path, small_kl_vae: Path
) -> None:
    job = HungJob(tmp_path, small_kl_vae, drain_seconds=60)
    os.kill(job.process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(job.process.pid, signal.SIGINT)
    assert job.seconds_to_end() < 2
    assert job.process.returncode == 128 + signal.SIGINT
    assert job.num_rows() == {"latents": 2, "sources": 1}
