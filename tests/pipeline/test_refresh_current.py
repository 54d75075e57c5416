"""Where other jobs end meanwhile, or some sources were not asked for, current is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.sources import find_sources
from pipeline.stages import StageEvent
from tests.pipeline.small_jobs import (
    NUM_SCENES,
    SCENES,
    SmallCache,
    SmallJob,
    WatchedEngine,
    make_autoencoder,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def test_a_refresh_of_some_sources_leaves_current_until_all_have_been(
    cache: SmallCache, update: SmallJob
) -> None:
    before = cache.ref("current")

    some = cache.refresh(update, find_sources(["scenes:0:1:2"]))

    assert some.made["perceptual.video"] == 1
    assert "3 other sources on record do not have these recipes" in str(some.result.current_stays)
    assert cache.ref("current") == before
    others = cache.refresh(update, find_sources([SCENES]))
    assert others.made["perceptual.video"] == NUM_SCENES - 1
    assert others.result.current_stays is None
    assert len(cache.level()) == NUM_SCENES


def test_a_refresh_does_not_undo_another_that_ended_meanwhile(
    cache: SmallCache, update: SmallJob, tmp_path: Path
) -> None:
    root = Path(cache.layout.url)
    other = replace(update, autoencoder=make_autoencoder(tmp_path / "other", video_seed=2))

    result = SmallCache(root, WatchedEngine(once(lambda: cache.run(other)))).run(update)

    assert "another job has moved it" in str(result.current_stays)
    wanted = cache.plan(other).wanted.digests
    assert cache.ref("current").recipes.items() >= wanted.items()
    # What it made is there, and the next run makes it current.
    done = cache.refresh(update)
    assert (done.made, done.result.current_stays) == ({}, None)


def test_a_refresh_leaves_current_where_a_source_came_meanwhile(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    root = Path(cache.layout.url)
    come = once(lambda: cache.run(job, "scenes:1:1:2"))

    result = SmallCache(root, WatchedEngine(come)).run(update)

    assert "1 other sources on record" in str(result.current_stays)
    done = cache.refresh(update)
    assert (done.made["perceptual.video"], done.result.current_stays) == (1, None)
    assert len(cache.level()) == NUM_SCENES + 1


def test_a_refresh_leaves_current_while_a_source_that_it_names_cannot_be_read(
    tmp_path: Path, job: SmallJob, video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    kl = replace(job, levels=("kl",))
    cache.ingest(kl, str(video), SCENES)
    before = cache.ref("current")
    away = video.rename(tmp_path / "away.mp4")
    faster = replace(kl, overrides=("clip.fps=20",))

    result = cache.run(faster)

    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_SCENES, 1)
    assert "1 sources whose latents it names could not be read now" in str(result.current_stays)
    assert cache.ref("current") == before
    away.rename(video)
    done = cache.refresh(faster)
    assert (done.result.num_clips_encoded, done.result.current_stays) == (1, None)


def test_an_ingest_does_not_undo_a_refresh_that_ended_meanwhile(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    root = Path(cache.layout.url)
    refreshed = once(lambda: cache.run(update))

    result = SmallCache(root, WatchedEngine(refreshed)).run(job, SCENES, "scenes:1:1:2")

    assert result.num_clips_encoded == 1
    assert "another job has moved it" in str(result.current_stays)
    wanted = cache.plan(update).wanted.digests
    assert cache.ref("current").recipes.items() >= wanted.items()


def once(action: Callable[[], object]) -> Callable[[StageEvent], None]:
    """Does something at the first event."""
    done: list[object] = []

    def look(event: StageEvent) -> None:
        if not done:
            done.append(True)
            action()

    return look


def test_half_a_level_is_not_kept_as_current(cache: SmallCache, job: SmallJob) -> None:
    cache.refresh(replace(job, levels=("kl",), overrides=("clip.fit=crop",)))

    # The sound of the clip level would still do, but its pictures do not.
    assert cache.ref("current").recipes.keys() == {"kl.video", "kl.audio"}
