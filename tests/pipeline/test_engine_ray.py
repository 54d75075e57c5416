"""Ray schedules: what it loses is tried again, and nothing is doubled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latents.cache.reader import open_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.fields import Level
from pipeline import engine_ray
from pipeline.engine_ray import MAX_ATTEMPTS, RayEngine
from pipeline.job import ClipTensors
from pipeline.synth import synthesise
from tests.pipeline.small_jobs import SmallCache, SmallJob, make_autoencoder

# Where an actor is lost, Ray starts another process: 10 s, and a minute on a busy machine.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CLIPS = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    import ray

    engine = RayEngine(num_workers=2, in_flight_bytes=1)  # the least: two clips
    engine.start()
    yield engine
    ray.shutdown()


SCENES = f"scenes:0:{NUM_CLIPS}:2"


def tensors(cache: SmallCache, level: Level = "kl") -> list[tuple[str, str, str]]:
    """Clip, field and digest of every tensor of a level."""
    clips = open_cache(cache.layout.url, level=level)
    return [(one.clip, field, row.digest) for one in clips for field, row in one.rows.items()]


def test_a_clip_whose_encoder_dies_is_encoded_by_another(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"
    parent = engine_ray.EncodeActor

    class DiesOnce(parent):  # type: ignore[misc, valid-type]
        def encode(self, clip: ClipTensors) -> Any:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return parent.encode(self, clip)

    monkeypatch.setattr(engine_ray, "EncodeActor", DiesOnce)
    cache, job = SmallCache(tmp_path / "ray", engine), SmallJob(kl_vae=small_kl_vae)
    result = cache.ingest(job, SCENES).result
    assert marker.exists()
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS, 0)
    local = SmallCache(tmp_path / "local")
    local.ingest(job, SCENES)
    assert tensors(cache) == tensors(local)


def test_a_source_whose_decoder_dies_is_decoded_again_and_nothing_is_doubled(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"
    parent = engine_ray.DecodeActor

    class DiesAfterItsClip(parent):  # type: ignore[misc, valid-type]
        def decode(self, task: Any) -> Iterator[Any]:
            for event in parent.decode(self, task):
                yield event
                if isinstance(event, ClipTensors) and not marker.exists():
                    marker.touch()
                    os._exit(1)

    monkeypatch.setattr(engine_ray, "DecodeActor", DiesAfterItsClip)
    cache = SmallCache(tmp_path / "c", engine)
    done = cache.ingest(SmallJob(kl_vae=small_kl_vae), SCENES)
    assert marker.exists()
    assert done.result.num_clips_encoded == NUM_CLIPS
    assert done.made == {"kl.video": NUM_CLIPS, "kl.audio": NUM_CLIPS}
    assert verify_cache(cache.layout) == []


def test_a_clip_that_always_kills_its_encoder_is_given_up_after_some_attempts(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = tmp_path / "attempts"
    parent = engine_ray.EncodeActor

    class DiesOnTheFirstScene(parent):  # type: ignore[misc, valid-type]
        def encode(self, clip: ClipTensors) -> Any:
            if clip.source == "scenes:0:0:2":
                with attempts.open("a") as file:
                    file.write("x")
                os._exit(1)
            return parent.encode(self, clip)

    monkeypatch.setattr(engine_ray, "EncodeActor", DiesOnTheFirstScene)
    cache, job = SmallCache(tmp_path / "c", engine), SmallJob(kl_vae=small_kl_vae)
    result = cache.run(job, SCENES)
    assert attempts.read_text() == "x" * MAX_ATTEMPTS
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS - 1, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["error_class"], event["source"]) == ("WorkerDiedError", "scenes:0:0:2")
    # The next run tries it again, and counts.
    result = cache.run(job, SCENES)
    assert attempts.read_text() == "x" * 2 * MAX_ATTEMPTS
    assert result.num_clips_encoded == 0
    assert [e["attempts"] for e in load_snapshot(cache.layout).quarantine.to_pylist()] == [1, 2]


def test_levels_that_are_kept_are_refreshed_as_in_process(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine
) -> None:
    first, other = (make_autoencoder(tmp_path / str(seed), video_seed=seed) for seed in (0, 1))
    job = SmallJob(kl_vae=small_kl_vae, autoencoder=first, levels=("kl", "perceptual"))
    caches = [SmallCache(tmp_path / "ray", engine), SmallCache(tmp_path / "local")]
    for cache in caches:
        cache.ingest(job, SCENES)
        done = cache.refresh(replace(job, autoencoder=other))
        assert (done.made, done.result.num_kl_images) == ({"perceptual.video": NUM_CLIPS}, 0)
    ray, local = (tensors(cache, "perceptual") for cache in caches)
    assert ray == local


def test_a_file_that_is_gone_is_tried_again_when_it_is_back(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine
) -> None:
    videos = tmp_path / "videos"
    synthesise(videos, num_clips=2, seconds=2, seed=1, fps=10, height=64, width=64)
    cache, job = SmallCache(tmp_path / "c", engine), SmallJob(kl_vae=small_kl_vae)
    cache.ingest(job, str(videos))
    gone = next(videos.glob("*.mp4"))
    gone.rename(tmp_path / "elsewhere")
    job = replace(job, overrides=("clip.fit=crop",))

    result = cache.run(job)
    assert (result.num_clips_encoded, result.num_quarantined) == (1, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["source"], event["stage"]) == (str(gone), "read")

    (tmp_path / "elsewhere").rename(gone)
    assert cache.run(job).num_clips_encoded == 1
    assert load_snapshot(cache.layout).open_quarantine() == []
