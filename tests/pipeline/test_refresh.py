"""Refresh: which refs move and when, what readers see, going on, and what is told beforehand."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latents.cache.log import CommitLog
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.refs import Ref, read_ref
from latents.cache.snapshot import content_digest, load_snapshot
from latents.errors import CacheError, InterruptedJobError, ModelError
from latents.fields import Level
from latents.models.kl_vae import KLVAE
from pipeline.deep_verify import Recomputed, deep_verify, deep_verify_stage, lenient
from pipeline.engine_local import LocalEngine
from pipeline.estimate import Estimate, estimate
from pipeline.job import EncodeJob, Task
from pipeline.originals import SourceClips
from pipeline.planned_job import PlannedJob
from pipeline.refresh import recorded_sources
from pipeline.sources import find_sources
from pipeline.stages import EncodedClip, StageEvent
from pipeline.why import explain
from tests.pipeline.small_jobs import (
    ALL_LEVELS,
    DecodesInProcess,
    SmallCache,
    SmallJob,
    make_autoencoder,
)

NUM_SCENES = 4
SCENES = f"scenes:0:{NUM_SCENES}:2"
BOTH: tuple[Level, ...] = ("kl", "perceptual")


@pytest.fixture(autouse=True)
def _decode_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_kl_vae: Path) -> SmallJob:
    folder = tmp_path_factory.mktemp("models") / "autoencoder"
    return SmallJob(kl_vae=small_kl_vae, autoencoder=make_autoencoder(folder), levels=ALL_LEVELS)


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory, job: SmallJob) -> SmallJob:
    """The same with other modal encoders."""
    folder = tmp_path_factory.mktemp("models") / "update"
    updated = make_autoencoder(folder, video_seed=1, audio_seed=1)
    return replace(job, autoencoder=updated, levels=BOTH)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, job: SmallJob) -> Path:
    """Scenes at all levels; to be copied."""
    root = tmp_path_factory.mktemp("ingested") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        SmallCache(root).ingest(job, SCENES)
    return root


@pytest.fixture
def cache(ingested: Path, tmp_path: Path) -> SmallCache:
    return SmallCache(shutil.copytree(ingested, tmp_path / "cache"))


def ref(cache: SmallCache, name: str) -> Ref:
    found = read_ref(cache.layout, name)
    assert found is not None
    return found


def level_of(cache: SmallCache, level: Level = "perceptual") -> CachedLevel:
    return open_cache(cache.layout.url, level=level)


def content(level: CachedLevel) -> str:
    rows = [row for clip in level for row in clip.rows.values()]
    return content_digest(
        {"clip": r.clip, "field": r.field, "shape": r.shape, "digest": r.digest} for r in rows
    )


# Refs.


def test_after_an_update_current_names_the_new_latents_and_previous_what_it_was(
    cache: SmallCache, update: SmallJob
) -> None:
    before = ref(cache, "current")

    done = cache.refresh(update)

    current = ref(cache, "current")
    assert ref(cache, "previous") == before
    assert current.commit == CommitLog(cache.layout).head() == done.result.commit
    assert current.recipes == dict(before.recipes) | done.planned.wanted.digests
    changed = {
        field for field, recipe in current.recipes.items() if before.recipes[field] != recipe
    }
    assert changed == {"perceptual.video", "perceptual.audio"}


def test_a_refresh_with_nothing_to_do_moves_no_ref(cache: SmallCache, job: SmallJob) -> None:
    before = ref(cache, "current")

    cache.refresh(job)

    assert ref(cache, "current") == before
    assert read_ref(cache.layout, "previous") is None


def test_what_was_made_from_kl_latents_of_before_is_current_no_more(
    cache: SmallCache, job: SmallJob, other_kl_vae: Path
) -> None:
    cache.refresh(replace(job, kl_vae=other_kl_vae, levels=("kl",)))

    # The clip level is as it was.
    fields = {"clip.video", "clip.audio", "kl.video", "kl.audio"}
    assert ref(cache, "current").recipes.keys() == fields
    with pytest.raises(CacheError, match=r"has no perceptual.video or perceptual.audio"):
        level_of(cache)
    assert len(open_cache(cache.layout.url, level="perceptual", ref="previous")) == NUM_SCENES


def test_going_back_makes_nothing_and_names_the_former_latents_again(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    before = content(level_of(cache))
    cache.refresh(update)

    done = cache.refresh(replace(job, levels=BOTH))

    assert done.made == {}
    assert content(level_of(cache)) == before


# Readers.


def test_a_reader_that_was_open_before_reads_the_same_during_and_after(
    cache: SmallCache, update: SmallJob
) -> None:
    reader = level_of(cache)
    before = read_all(reader)
    during: list[bool] = []

    def look(event: StageEvent) -> None:
        during.append(read_all(reader) == before and content(level_of(cache)) == content(reader))

    SmallCache(Path(cache.layout.url), Watched(look)).run(update)

    assert during == [True] * 2 * NUM_SCENES
    assert read_all(reader) == before
    assert read_all(level_of(cache)) != before


def read_all(level: CachedLevel) -> list[bytes]:
    return [level.read(clip, field).tobytes() for clip in level for field in clip.rows]


class Watched:
    """An engine that shows each event to someone before the committer gets it."""

    def __init__(self, look: Callable[[StageEvent], None]) -> None:
        self._look, self._engine = look, LocalEngine(num_workers=1)

    def start(self) -> None:
        pass

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], should_stop: Callable[[], bool]
    ) -> Generator[StageEvent, None, None]:
        for event in self._engine.run(job, tasks, should_stop):
            self._look(event)
            yield event


# Interruptions and parts.


def interrupt_after(num_clips: int) -> Watched:
    """An engine during whose run Ctrl-C is pressed."""
    seen: list[StageEvent] = []

    def look(event: StageEvent) -> None:
        seen.append(event)
        if sum(isinstance(one, EncodedClip) for one in seen) == num_clips:
            signal.raise_signal(signal.SIGINT)

    return Watched(look)


def test_interrupted_in_the_middle_it_leaves_current_and_goes_on_from_there(
    cache: SmallCache, update: SmallJob, ingested: Path, tmp_path: Path
) -> None:
    before = ref(cache, "current")
    whole = SmallCache(shutil.copytree(ingested, tmp_path / "whole"))
    whole.refresh(update)
    root = Path(cache.layout.url)

    with pytest.raises(InterruptedJobError, match="what was finished is committed"):
        SmallCache(root, interrupt_after(2)).run(update)

    assert ref(cache, "current") == before
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
    assert content(level_of(cache)) == content(level_of(whole))


@pytest.mark.parametrize("is_kept", [True, False], ids=["from the cache", "from sources"])
def test_all_parts_and_then_the_whole_make_what_one_run_does(
    is_kept: bool, cache: SmallCache, job: SmallJob, other_kl_vae: Path, tmp_path: Path
) -> None:
    update = replace(job, kl_vae=other_kl_vae, levels=BOTH)
    if not is_kept:
        update = replace(update, overrides=("clip.fit=crop",))
    whole = SmallCache(shutil.copytree(cache.layout.url, tmp_path / "whole"))
    whole.refresh(update)
    before = ref(cache, "current")

    parts = [cache.refresh(update, part=(number, 3)) for number in (1, 2, 3)]

    assert ref(cache, "current") == before
    assert sum(part.result.num_clips_encoded for part in parts) == NUM_SCENES
    assert sum(part.result.num_sources for part in parts) == NUM_SCENES
    assert cache.refresh(update).made == {}
    assert ref(cache, "current").recipes == ref(whole, "current").recipes
    assert content(level_of(cache)) == content(level_of(whole))


def test_parts_share_the_sources_without_overlap(cache: SmallCache) -> None:
    snapshot = load_snapshot(cache.layout)
    parts = [recorded_sources(snapshot, part=(number, 3)) for number in (1, 2, 3)]
    names = [source.source.uri for part in parts for source in part]
    assert sorted(names) == sorted(s.source.uri for s in recorded_sources(snapshot))


def test_a_refresh_of_some_sources_leaves_current_until_all_have_been(
    cache: SmallCache, update: SmallJob
) -> None:
    before = ref(cache, "current")

    some = cache.refresh(update, find_sources(["scenes:0:1:2"]))

    assert some.made["perceptual.video"] == 1
    assert "3 other sources on record do not have these recipes" in str(some.result.current_stays)
    assert ref(cache, "current") == before
    others = cache.refresh(update, find_sources([SCENES]))
    assert others.made["perceptual.video"] == NUM_SCENES - 1
    assert others.result.current_stays is None
    assert len(level_of(cache)) == NUM_SCENES


def test_a_refresh_does_not_undo_another_that_ended_meanwhile(
    cache: SmallCache, update: SmallJob, tmp_path: Path
) -> None:
    root = Path(cache.layout.url)
    other = replace(update, autoencoder=make_autoencoder(tmp_path / "other", video_seed=2))

    result = SmallCache(root, Watched(once(lambda: cache.run(other)))).run(update)

    assert "another job has moved it" in str(result.current_stays)
    wanted = cache.plan(other).wanted.digests
    assert ref(cache, "current").recipes.items() >= wanted.items()
    # What it made is there, and the next run makes it current.
    done = cache.refresh(update)
    assert (done.made, done.result.current_stays) == ({}, None)


def test_a_refresh_leaves_current_where_a_source_came_meanwhile(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    root = Path(cache.layout.url)
    come = once(lambda: cache.run(job, "scenes:1:1:2"))

    result = SmallCache(root, Watched(come)).run(update)

    assert "1 other sources on record" in str(result.current_stays)
    done = cache.refresh(update)
    assert (done.made["perceptual.video"], done.result.current_stays) == (1, None)
    assert len(level_of(cache)) == NUM_SCENES + 1


def test_an_ingest_does_not_undo_a_refresh_that_ended_meanwhile(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    root = Path(cache.layout.url)
    refreshed = once(lambda: cache.run(update))

    result = SmallCache(root, Watched(refreshed)).run(job, SCENES, "scenes:1:1:2")

    assert result.num_clips_encoded == 1
    assert "another job has moved it" in str(result.current_stays)
    wanted = cache.plan(update).wanted.digests
    assert ref(cache, "current").recipes.items() >= wanted.items()


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
    assert ref(cache, "current").recipes.keys() == {"kl.video", "kl.audio"}


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


# Files that are not there.


def test_a_file_that_is_gone_is_tried_again_when_it_is_back(
    tmp_path: Path, job: SmallJob, make_video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    job = replace(job, levels=("kl",))
    cache.ingest(job, str(make_video))
    make_video.rename(tmp_path / "elsewhere")
    other = replace(job, overrides=("mel.name=audioldm16k",))

    lost = cache.run(other)
    assert (lost.num_clips_encoded, lost.num_quarantined) == (0, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["stage"], event["message"]) == (
        "read",
        "the file cannot be read (No such file or directory)",
    )

    (tmp_path / "elsewhere").rename(make_video)
    assert cache.refresh(other).made == {"kl.audio": 1}
    assert load_snapshot(cache.layout).open_quarantine() == []


@pytest.fixture
def make_video(tmp_path: Path) -> Path:
    from pipeline.synth import synthesise

    folder = tmp_path / "videos"
    synthesise(folder, num_clips=1, seconds=2, seed=1, fps=10, height=64, width=64)
    (video,) = folder.glob("*.mp4")
    return video


def test_what_is_given_up_again_under_other_versions_counts_its_attempts(
    tmp_path: Path, job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    cache, sources = SmallCache(tmp_path / "cache"), str(tmp_path / "text.mp4")
    for version in ("av 1", "av 2"):
        monkeypatch.setattr("pipeline.ingest.decode_versions", lambda version=version: version)
        assert cache.run(job, sources).num_quarantined == 1
        assert cache.ingest(job, sources).rows == {}  # given up under this version

    events = load_snapshot(cache.layout).quarantine.to_pylist()
    assert [(event["versions"], event["attempts"]) for event in events] == [
        ("av 1", 1),
        ("av 2", 2),
    ]


# Weights that are not those on record.


def test_weights_that_changed_since_the_plan_are_refused(
    cache: SmallCache, update: SmallJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_autoencoder(tmp_path / "other", video_seed=2)
    encoders, before = update.encoders, ref(cache, "current")
    monkeypatch.setattr(SmallJob, "encoders", encoders)

    with pytest.raises(ModelError, match="Name the right ones with --autoencoder"):
        cache.run(replace(update, autoencoder=other))

    assert ref(cache, "current") == before


# Making clips again.


def verify(cache: SmallCache, job: SmallJob, *, num_clips: int = NUM_SCENES) -> list[Recomputed]:
    current = ref(cache, "current")
    clips = SourceClips(load_snapshot(cache.layout, current.commit), lenient(job.settings))
    stage = deep_verify_stage(
        job.settings, job.encoders, fields=current.recipes, device="cpu", cache=cache.layout
    )
    found = deep_verify(cache.layout, clips, stage, num_clips=num_clips)
    clips.close()
    return found


def test_clips_made_again_agree_with_an_intact_cache(cache: SmallCache, job: SmallJob) -> None:
    found = verify(cache, job)

    assert len(found) == 6 * NUM_SCENES
    assert {one.problem for one in found} == {None}
    # On one thread of one machine they are the same to the last bit.
    assert {one.distance for one in found} == {0.0}
    assert {one.field: one.tolerance for one in found} == {
        "clip.video": 0.0,
        "clip.audio": 0.0,
        "kl.video": 1e-3,
        "kl.audio": 1e-3,
        "perceptual.video": 1e-3,
        "perceptual.audio": 1e-3,
    }


def test_it_is_always_the_same_clips_that_are_made_again(cache: SmallCache, job: SmallJob) -> None:
    one, two = ({r.clip for r in verify(cache, job, num_clips=count)} for count in (1, 2))
    assert (len(one), len(two)) == (1, 2)
    assert one < two


@pytest.mark.parametrize(("noise", "is_within"), [(1e-5, True), (0.1, False)])
def test_a_field_that_comes_out_beyond_its_tolerance_is_named(
    noise: float,
    is_within: bool,
    cache: SmallCache,
    job: SmallJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = KLVAE.encode
    monkeypatch.setattr(KLVAE, "encode", lambda self, images: encode(self, images) * (1 + noise))

    found = {one.field: one for one in verify(cache, job, num_clips=1)}

    assert found["clip.video"].problem is None
    assert (found["kl.video"].problem is None) == is_within
    if not is_within:
        assert found["kl.video"].distance == pytest.approx(noise, rel=0.01)
        assert "more than the 1e-03 recorded" in str(found["kl.video"].problem)


def test_a_source_that_is_gone_cannot_be_made_again(
    tmp_path: Path, job: SmallJob, make_video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    cache.ingest(job, str(make_video))
    make_video.unlink()

    found = verify(cache, job)

    assert {one.problem for one in found} == {"it cannot be made again: the source is gone"}
    assert {(one.source, one.distance) for one in found} == {(str(make_video), None)}


# Where latents come from.


def test_the_chain_behind_a_clip_is_told_with_refs_and_differences(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    cache.refresh(update)
    (name, *_) = level_of(cache).clips.clip_keys()
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
    assert new.chain[-1].recipe == ref(cache, "current").recipes["perceptual.video"]
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
    tmp_path: Path, job: SmallJob, make_video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    (before,) = cache.ingest(job, str(make_video)).rows["sources"]
    make_video.write_text("this is no video")
    cache.run(job, str(make_video))

    gone, given_up = (explain(cache.layout, n) for n in (before["digest"], str(make_video)))

    assert (gone.uris, gone.clips) == ((), ())
    assert [line.split(": ")[1] for line in gone.left] == ["all clips changed"]
    assert given_up.uris == (str(make_video),)
    (event,) = given_up.quarantine
    assert "the source rejected in decode: DecodeError" in event


def test_a_name_that_the_cache_does_not_know_is_refused(cache: SmallCache) -> None:
    with pytest.raises(CacheError, match="nothing is called 'scenes:9:9:9'"):
        explain(cache.layout, "scenes:9:9:9")


# What it will cost.


def stored_bytes(cache: SmallCache) -> int:
    return sum(file.num_bytes for file in cache.layout.storage.list(""))


def cost(planned: PlannedJob) -> Estimate:
    return estimate(
        planned.plan, planned.snapshot, planned.wanted, planned.settings, free_bytes=10**9
    )


@pytest.mark.parametrize("levels", [("kl",), ALL_LEVELS], ids=["kl", "all levels"])
def test_what_new_sources_will_store_is_told_within_a_quarter(
    levels: tuple[Level, ...], cache: SmallCache, job: SmallJob
) -> None:
    before = stored_bytes(cache)

    done = cache.ingest(replace(job, levels=levels), "scenes:1:12:2")

    assert cost(done.planned).num_clips == 12
    stored = stored_bytes(cache) - before
    assert cost(done.planned).num_bytes == pytest.approx(stored, rel=0.25)


def test_what_an_update_will_store_is_told_within_a_quarter(
    cache: SmallCache, job: SmallJob, other_kl_vae: Path
) -> None:
    cache.ingest(job, "scenes:1:8:2")
    before = stored_bytes(cache)

    done = cache.refresh(replace(job, kl_vae=other_kl_vae, levels=BOTH))

    assert cost(done.planned).num_clips == NUM_SCENES + 8
    stored = stored_bytes(cache) - before
    assert cost(done.planned).num_bytes == pytest.approx(stored, rel=0.25)


def test_time_is_told_once_clips_of_the_kind_were_made(cache: SmallCache, job: SmallJob) -> None:
    more = find_sources(["scenes:1:2:2"])
    timed = cost(cache.plan(job, more))
    assert timed.encode_seconds == pytest.approx(2 * mean_seconds(cache), rel=1e-6)
    assert cost(cache.plan(replace(job, levels=("kl",)), more)).encode_seconds is None


def mean_seconds(cache: SmallCache) -> float:
    rows: list[dict[str, Any]] = cache.committed(-1)["latents"]
    return float(np.mean([row["encode_seconds"] for row in rows]))


def test_too_little_room_is_told(cache: SmallCache, job: SmallJob) -> None:
    planned = cache.plan(job, find_sources(["scenes:1:2:2"]))
    one = estimate(planned.plan, planned.snapshot, planned.wanted, planned.settings, free_bytes=9)
    assert not one.fits
    assert cost(planned).fits


def test_latents_are_those_that_the_named_encoders_give(
    cache: SmallCache, update: SmallJob
) -> None:
    from latents.models.modal_encoder_files import load_modal_encoders

    cache.refresh(update)
    kl, perceptual = level_of(cache, "kl"), level_of(cache)
    clip = kl.clips[0]
    means = torch.from_numpy(kl.read(clip, "kl.video"))[:16, :4].float()
    scaled = means * update.encoders.kl_vae.scaling_factor

    assert update.autoencoder is not None
    wanted = load_modal_encoders(update.autoencoder).encode_video(scaled[None])

    found = perceptual.read(perceptual.clips[0], "perceptual.video")
    np.testing.assert_array_equal(found, wanted.to(torch.float16).numpy())
