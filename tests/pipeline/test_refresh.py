"""Refresh: what it makes current and when, what readers see, and what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latents.cache.log import CommitLog
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.refs import read_ref
from latents.cache.snapshot import content_digest, load_snapshot
from latents.errors import CacheError, ModelError
from latents.models.modal_encoder_files import load_modal_encoders
from pipeline.stages import StageEvent
from tests.pipeline.small_jobs import (
    BOTH,
    NUM_SCENES,
    SmallCache,
    SmallJob,
    WatchedEngine,
    make_autoencoder,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def test_after_an_update_current_names_the_new_latents_and_previous_what_it_was(
    cache: SmallCache, update: SmallJob
) -> None:
    before = cache.ref("current")

    done = cache.refresh(update)

    current = cache.ref("current")
    assert cache.ref("previous") == before
    assert current.commit == CommitLog(cache.layout).head() == done.result.commit
    assert current.recipes == dict(before.recipes) | done.planned.wanted.digests
    changed = {
        field for field, recipe in current.recipes.items() if before.recipes[field] != recipe
    }
    assert changed == {"perceptual.video", "perceptual.audio"}


def test_a_refresh_with_nothing_to_do_moves_no_ref(cache: SmallCache, job: SmallJob) -> None:
    before = cache.ref("current")

    cache.refresh(job)

    assert cache.ref("current") == before
    assert read_ref(cache.layout, "previous") is None


def test_what_was_made_from_kl_latents_of_before_is_current_no_more(
    cache: SmallCache, job: SmallJob, other_kl_vae: Path
) -> None:
    cache.refresh(replace(job, kl_vae=other_kl_vae, levels=("kl",)))

    # The clip level is as it was.
    fields = {"clip.video", "clip.audio", "kl.video", "kl.audio"}
    assert cache.ref("current").recipes.keys() == fields
    with pytest.raises(CacheError, match=r"has no perceptual.video or perceptual.audio"):
        cache.level()
    assert len(open_cache(cache.layout.url, level="perceptual", ref="previous")) == NUM_SCENES


def test_going_back_makes_nothing_and_names_the_former_latents_again(
    cache: SmallCache, job: SmallJob, update: SmallJob
) -> None:
    before = content(cache.level())
    cache.refresh(update)

    done = cache.refresh(replace(job, levels=BOTH))

    assert done.made == {}
    assert content(cache.level()) == before


def test_a_reader_that_was_open_before_reads_the_same_during_and_after(
    cache: SmallCache, update: SmallJob
) -> None:
    reader = cache.level()
    before = read_all(reader)
    during: list[bool] = []

    def look(event: StageEvent) -> None:
        during.append(read_all(reader) == before and content(cache.level()) == content(reader))

    SmallCache(Path(cache.layout.url), WatchedEngine(look)).run(update)

    assert during == [True] * 2 * NUM_SCENES
    assert read_all(reader) == before
    assert read_all(cache.level()) != before


def read_all(level: CachedLevel) -> list[bytes]:
    return [level.read(clip, field).tobytes() for clip in level for field in clip.rows]


def test_latents_are_those_that_the_named_encoders_give(
    cache: SmallCache, update: SmallJob
) -> None:
    cache.refresh(update)
    kl, perceptual = cache.level("kl"), cache.level()
    clip = kl.clips[0]
    means = torch.from_numpy(kl.read(clip, "kl.video"))[:16, :4].float()
    scaled = means * update.encoders.kl_vae.scaling_factor

    assert update.autoencoder is not None
    wanted = load_modal_encoders(update.autoencoder).encode_video(scaled[None])

    found = perceptual.read(perceptual.clips[0], "perceptual.video")
    np.testing.assert_array_equal(found, wanted.to(torch.float16).numpy())


def test_a_file_that_is_gone_is_tried_again_when_it_is_back(
    tmp_path: Path, job: SmallJob, video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    job = replace(job, levels=("kl",))
    cache.ingest(job, str(video))
    video.rename(tmp_path / "elsewhere")
    other = replace(job, overrides=("mel.name=audioldm16k",))

    lost = cache.run(other)
    assert (lost.num_clips_encoded, lost.num_quarantined) == (0, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["stage"], event["message"]) == (
        "read",
        "the file cannot be read (No such file or directory)",
    )

    (tmp_path / "elsewhere").rename(video)
    assert cache.refresh(other).made == {"kl.audio": 1}
    assert load_snapshot(cache.layout).open_quarantine() == []


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


def test_weights_that_changed_since_the_plan_are_refused(
    cache: SmallCache, update: SmallJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_autoencoder(tmp_path / "other", video_seed=2)
    encoders, before = update.encoders, cache.ref("current")
    monkeypatch.setattr(SmallJob, "encoders", encoders)

    with pytest.raises(ModelError, match="Name the right ones with --autoencoder"):
        cache.run(replace(update, autoencoder=other))

    assert cache.ref("current") == before


def content(level: CachedLevel) -> str:
    rows = [row for clip in level for row in clip.rows.values()]
    return content_digest(
        {"clip": r.clip, "field": r.field, "shape": r.shape, "digest": r.digest} for r in rows
    )
