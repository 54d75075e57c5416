"""Where latents come from: sources, recipes, refs, and what left or was given up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latents.cache.log import CommitLog
from latents.cache.snapshot import load_snapshot
from latents.errors import CacheError
from pipeline.why import explain
from tests.pipeline.small_jobs import (
    BOTH,
    SmallCache,
    SmallJob,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def test_the_chain_behind_a_clip_is_told_with_refs_and_differences(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    cache.refresh(update)
    (name, *_) = cache.level().clips.clip_keys()
    wanted = cache.plan(replace(job, levels=BOTH)).wanted

    origin = explain(cache.layout, name, wanted=wanted.recipes)

    (clip,) = origin.clips
    assert clip.clip == name
    assert origin.uris[0].startswith("scenes:0:")
    by_field = [(field.field, field.refs, bool(field.differences)) for field in clip.fields]
    assert sorted(by_field) == [
        ("clip.audio", ("current", "previous"), False),
        ("clip.video", ("current", "previous"), False),
        ("kl.audio", ("current", "previous"), False),
        ("kl.video", ("current", "previous"), False),
        ("perceptual.audio", ("current",), True),
        ("perceptual.audio", ("previous",), False),
        ("perceptual.video", ("current",), True),
        ("perceptual.video", ("previous",), False),
    ]
    (new,) = (f for f in clip.fields if (f.field, f.refs) == ("perceptual.video", ("current",)))
    assert [link.field for link in new.chain] == [
        "clip.audio",
        "clip.video",
        "kl.video",
        "perceptual.video",
    ]
    assert new.chain[-1].recipe == cache.ref("current").recipes["perceptual.video"]
    assert [line.split(":")[0] for line in new.differences or ()] == [
        "perceptual.video encoder weights"
    ]
    assert new.commit == CommitLog(cache.layout).head()
    (kept,) = (field for field in clip.fields if field.field == "clip.video")
    assert kept.differences is None  # not among what is wanted


@pytest.mark.parametrize("by", ["uri", "digest", "beginning"])
def test_a_source_is_found_by_its_names(by: str, cache: SmallCache) -> None:
    (source, *_) = load_snapshot(cache.layout).sources.to_pylist()
    name = {"uri": source["uri"], "digest": source["digest"], "beginning": source["digest"][:8]}

    origin = explain(cache.layout, name[by])

    assert origin.source_digest == source["digest"]
    assert [len(clip.fields) for clip in origin.clips] == [6]


def test_what_left_and_what_was_given_up_is_told(
    tmp_path: Path, job: SmallJob, video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    (before,) = cache.ingest(job, str(video)).rows["sources"]
    video.write_text("this is no video")
    cache.run(job, str(video))

    gone, given_up = (explain(cache.layout, n) for n in (before["digest"], str(video)))

    assert (gone.uris, gone.clips) == ((), ())
    assert [line.split(": ")[1] for line in gone.left] == ["all clips changed"]
    assert given_up.uris == (str(video),)
    (event,) = given_up.quarantine
    assert "the source rejected in decode: DecodeError" in event


def test_a_name_that_the_cache_does_not_know_is_refused(cache: SmallCache) -> None:
    with pytest.raises(CacheError, match="nothing is called 'scenes:9:9:9'"):
        explain(cache.layout, "scenes:9:9:9")
