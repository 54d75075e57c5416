"""A refresh that is interrupted, or done in parts, ends as if it had not been."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from latents.cache.reader import CachedLevel
from latents.cache.snapshot import content_digest, load_snapshot
from latents.errors import InterruptedJobError
from pipeline.encoded import EncodedClip
from pipeline.refresh import recorded_sources
from pipeline.stages import StageEvent
from tests.pipeline.small_jobs import (
    BOTH,
    NUM_SCENES,
    SmallCache,
    SmallJob,
    WatchedEngine,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def interrupt_after(num_clips: int) -> WatchedEngine:
    """An engine during whose run Ctrl-C is pressed."""
    seen: list[StageEvent] = []

    def look(event: StageEvent) -> None:
        seen.append(event)
        if sum(isinstance(one, EncodedClip) for one in seen) == num_clips:
            signal.raise_signal(signal.SIGINT)

    return WatchedEngine(look)


def test_interrupted_in_the_middle_it_leaves_current_and_goes_on_from_there(
    cache: SmallCache, update: SmallJob, ingested: Path, tmp_path: Path
) -> None:
    before = cache.ref("current")
    whole = SmallCache(shutil.copytree(ingested, tmp_path / "whole"))
    whole.refresh(update)
    root = Path(cache.layout.url)

    with pytest.raises(InterruptedJobError, match="what was finished is committed"):
        SmallCache(root, interrupt_after(2)).run(update)

    assert cache.ref("current") == before
    committed = cache.committed(before.commit)["latents"]
    num_done = len(committed) // 2
    assert 1 <= num_done < NUM_SCENES
    done = cache.refresh(update)
    left = NUM_SCENES - num_done
    assert done.made == {"perceptual.video": left, "perceptual.audio": left}
    assert [dict(one.to_encode) for one in done.planned.plan.fields.values()] == [
        {},
        {},
        {"new encoder": left},
        {"new encoder": left},
    ]
    assert content(cache.level()) == content(whole.level())


@pytest.mark.parametrize("is_kept", [True, False], ids=["from the cache", "from sources"])
def test_all_parts_and_then_the_whole_make_what_one_run_does(
    is_kept: bool, cache: SmallCache, job: SmallJob, other_kl_vae: Path, tmp_path: Path
) -> None:
    update = replace(job, kl_vae=other_kl_vae, levels=BOTH)
    if not is_kept:
        update = replace(update, overrides=("clip.fit=crop",))
    whole = SmallCache(shutil.copytree(cache.layout.url, tmp_path / "whole"))
    whole.refresh(update)
    before = cache.ref("current")

    parts = [cache.refresh(update, part=(number, 3)) for number in (1, 2, 3)]

    assert cache.ref("current") == before
    assert sum(part.result.num_clips_encoded for part in parts) == NUM_SCENES
    assert sum(part.result.num_sources for part in parts) == NUM_SCENES
    assert cache.refresh(update).made == {}
    assert cache.ref("current").recipes == whole.ref("current").recipes
    assert content(cache.level()) == content(whole.level())


def test_parts_share_the_sources_without_overlap(cache: SmallCache) -> None:
    snapshot = load_snapshot(cache.layout)
    parts = [recorded_sources(snapshot, part=(number, 3)) for number in (1, 2, 3)]
    names = [source.source.uri for part in parts for source in part]
    assert sorted(names) == sorted(s.source.uri for s in recorded_sources(snapshot))


def test_clips_of_one_source_that_are_read_and_decoded_are_counted_once(
    tmp_path: Path, job: SmallJob
) -> None:
    # Three segments of 20 frames; the cut must survive whichever task ends last.
    cut = ("clip.segment_seconds=2", "clip.tail_frames=16")
    job = replace(job, levels=BOTH, overrides=cut)
    cache = SmallCache(tmp_path / "cache")
    cache.ingest(job, "scenes:0:1:6")

    done = cache.refresh(replace(job, overrides=(*cut, "window.stride=4")))

    assert done.made == {"kl.audio": 3, "perceptual.video": 3, "perceptual.audio": 3}
    assert done.result.num_clips_encoded == 3
    # Windows at 0 and 4: pictures are encoded no more.
    assert done.result.num_kl_images == 3 * 2
    snapshot = load_snapshot(cache.layout)
    assert snapshot.source_history["num_segments"].to_pylist() == [3, 3]


def content(level: CachedLevel) -> str:
    rows = [row for clip in level for row in clip.rows.values()]
    return content_digest(
        {"clip": r.clip, "field": r.field, "shape": r.shape, "digest": r.digest} for r in rows
    )
