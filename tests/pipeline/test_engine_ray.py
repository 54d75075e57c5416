"""Ray schedules: what it loses is tried again, and nothing is doubled."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latents.cache.reader import open_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import JobError, ModelError
from latents.fields import Level
from pipeline import engine_ray
from pipeline.encoded import EncodedClip
from pipeline.engine_ray import RayEngine
from pipeline.job import ClipTensors, EncodeJob, Task
from pipeline.ray_decode_actor import ClipGiven
from pipeline.ray_run import RayRun
from pipeline.stage_clock import StageTime
from pipeline.stages import StageEvent
from pipeline.stop_request import StopRequest
from pipeline.synth import synthesise
from tests.pipeline.small_jobs import SmallCache, SmallJob, make_autoencoder

# Where an actor is lost, Ray starts another process: 10 s, and a minute on a busy machine.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CLIPS = 3
ATTEMPTS = 3
IDENTITY = Path("identity")
"""The encoder that starts soonest."""
SCENE_BYTES = 20 * 3 * 32 * 32 + 2 * 22050 * 2 * 4
"""Of a scene of two seconds: pictures and sound."""


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    import ray

    engine = RayEngine(num_workers=2, in_flight_bytes=1, attempts=ATTEMPTS)  # the least: a clip
    engine.start()
    yield engine
    ray.shutdown()


SCENES = f"scenes:0:{NUM_CLIPS}:2"


def tensors(cache: SmallCache, level: Level = "kl") -> list[tuple[str, str, str]]:
    """Clip, field and digest of every tensor of a level."""
    clips = open_cache(cache.layout.url, level=level)
    return [(one.clip, field, row.digest) for one in clips for field, row in one.rows.items()]


def test_a_clip_whose_encoder_dies_is_encoded_by_another(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
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
    cache, job = SmallCache(tmp_path / "ray", engine), SmallJob(kl_vae=IDENTITY)
    result = cache.ingest(job, SCENES).result
    assert marker.exists()
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS, 0)
    local = SmallCache(tmp_path / "local")
    local.ingest(job, SCENES)
    assert tensors(cache) == tensors(local)


def test_a_source_whose_decoder_dies_is_decoded_again_and_nothing_is_doubled(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
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
    done = cache.ingest(SmallJob(kl_vae=IDENTITY), SCENES)
    assert marker.exists()
    assert done.result.num_clips_encoded == NUM_CLIPS
    assert done.made == {"kl.video": NUM_CLIPS, "kl.audio": NUM_CLIPS}
    assert verify_cache(cache.layout) == []


def test_a_clip_that_always_kills_its_encoder_is_given_up_after_some_attempts(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
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
    cache, job = SmallCache(tmp_path / "c", engine), SmallJob(kl_vae=IDENTITY)
    result = cache.run(job, SCENES)
    assert attempts.read_text() == "x" * ATTEMPTS
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS - 1, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["error_class"], event["source"]) == ("WorkerDiedError", "scenes:0:0:2")
    # The next run tries it again, and counts.
    result = cache.run(job, SCENES)
    assert attempts.read_text() == "x" * 2 * ATTEMPTS
    assert result.num_clips_encoded == 0
    assert [e["attempts"] for e in load_snapshot(cache.layout).quarantine.to_pylist()] == [1, 2]


LONG = SmallJob(
    kl_vae=IDENTITY,
    overrides=(
        "clip.segment_seconds=1",
        "clip.tail_frames=8",
        "window.frames=8",
        "window.stride=8",
    ),
)
LONG_SCENE = "scenes:0:1:6"
"""Six clips."""


def test_a_segment_that_always_kills_its_decoder_is_given_up_and_those_before_it_are_kept(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = tmp_path / "skipped"
    parent = engine_ray.DecodeActor

    class DiesAtTheThird(parent):  # type: ignore[misc, valid-type]
        def decode(self, task: Any) -> Iterator[Any]:
            with skipped.open("a") as file:
                file.write(f"{sorted(task.skip_segments)}\n")
            for event in parent.decode(self, task):
                # Announced, and never given.
                if isinstance(event, ClipTensors) and event.segment == 2:
                    os._exit(1)
                yield event

    monkeypatch.setattr(engine_ray, "DecodeActor", DiesAtTheThird)
    cache = SmallCache(tmp_path / "c", engine)
    result = cache.run(LONG, LONG_SCENE)

    assert (result.num_clips_encoded, result.num_quarantined) == (2, 1)
    (event,) = load_snapshot(cache.layout).open_quarantine()
    assert (event["error_class"], event["segment"]) == ("WorkerDiedError", 2)
    # What had arrived is not asked for again.
    assert skipped.read_text().splitlines() == ["[]", *["[0, 1]"] * (ATTEMPTS - 1)]


def test_decoders_that_die_at_one_segment_after_the_other_cost_no_clip(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = tmp_path / "deaths"
    deaths.touch()
    parent = engine_ray.DecodeActor

    class DiesAfterEachClip(parent):  # type: ignore[misc, valid-type]
        def decode(self, task: Any) -> Iterator[Any]:
            for event in parent.decode(self, task):
                yield event
                if isinstance(event, ClipGiven) and len(task.skip_segments) < ATTEMPTS + 1:
                    with deaths.open("a") as file:
                        file.write("x")
                    os._exit(1)

    monkeypatch.setattr(engine_ray, "DecodeActor", DiesAfterEachClip)
    cache = SmallCache(tmp_path / "ray", engine)
    result = cache.run(LONG, LONG_SCENE)

    assert len(deaths.read_text()) == ATTEMPTS + 1
    assert (result.num_clips_encoded, result.num_quarantined) == (6, 0)
    local = SmallCache(tmp_path / "local")
    local.run(LONG, LONG_SCENE)
    assert tensors(cache) == tensors(local)


@pytest.mark.parametrize(("bound", "most"), [(1, 1), (SCENE_BYTES * 5 // 2, 3)])
def test_no_more_clips_wait_than_the_bound_and_the_one_that_crosses_it(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch, bound: int, most: int
) -> None:
    in_flight = []

    class Watched(RayRun):
        def _next_ready(self) -> list[Any]:
            in_flight.append(self._in_flight_bytes)
            return super()._next_ready()

    monkeypatch.setattr(engine_ray, "RayRun", Watched)
    bounded = RayEngine(num_workers=2, in_flight_bytes=bound)
    job = SmallJob(kl_vae=IDENTITY)
    result = SmallCache(tmp_path / "c", bounded).run(job, "scenes:0:12:2")

    assert result.num_clips_encoded == 12
    assert max(in_flight) <= most * SCENE_BYTES
    assert set(in_flight) <= {count * SCENE_BYTES for count in range(most + 1)}
    assert {0, SCENE_BYTES} <= set(in_flight)


@pytest.mark.parametrize("actor", ["DecodeActor", "EncodeActor"])
def test_a_package_that_a_node_lacks_ends_the_job_and_names_node_and_package(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch, actor: str
) -> None:
    parent = getattr(engine_ray, actor)

    class LacksAPackage(parent):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setattr(engine_ray, actor, LacksAPackage)
    cache = SmallCache(tmp_path / "c", engine)

    with pytest.raises(JobError, match=r"node [\d.]+ .*No module named 'nowhere'; install there"):
        cache.run(SmallJob(kl_vae=IDENTITY), SCENES)

    assert load_snapshot(cache.layout).open_quarantine() == []


def test_a_model_that_a_node_lacks_ends_the_job_and_names_the_node(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = engine_ray.EncodeActor

    class LooksElsewhere(parent):  # type: ignore[misc, valid-type]
        def __init__(self, job: EncodeJob, weights: Any) -> None:
            kl_vae = replace(job.settings.kl_vae, source=str(tmp_path / "gone"))
            parent.__init__(self, replace(job, settings=replace(job.settings, kl_vae=kl_vae)), ())

    monkeypatch.setattr(engine_ray, "EncodeActor", LooksElsewhere)
    cache = SmallCache(tmp_path / "c", engine)

    with pytest.raises(ModelError, match=rf"node {socket.gethostname()} \(.*gone: there is no"):
        cache.run(SmallJob(kl_vae=small_kl_vae), SCENES)


class AsksToStop:
    """An engine whose job is asked to stop after its first clip."""

    def __init__(self, engine: RayEngine, how: str) -> None:
        self._engine, self._how = engine, how

    def start(self) -> None:
        self._engine.start()

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent | StageTime, None, None]:
        for event in self._engine.run(job, tasks, stop):
            yield event
            if isinstance(event, EncodedClip):
                getattr(stop, self._how)()


def test_a_job_that_is_asked_to_finish_commits_what_is_in_hand_and_begins_nothing(
    tmp_path: Path, engine: RayEngine
) -> None:
    stopped = SmallCache(tmp_path / "c", AsksToStop(engine, "finish"))

    first = stopped.run(LONG, "scenes:0:8:6")

    # Two decoders: the clip that each is at, what waits for an encoder, and the one that was done.
    assert 1 <= first.num_clips_encoded <= 6
    assert first.num_quarantined == 0
    rest = SmallCache(tmp_path / "c", engine).run(LONG, "scenes:0:8:6")
    assert first.num_clips_encoded + rest.num_clips_encoded == 48


def test_a_job_that_is_to_end_at_once_keeps_what_was_encoded(
    tmp_path: Path, engine: RayEngine
) -> None:
    stopped = SmallCache(tmp_path / "c", AsksToStop(engine, "stop"))

    result = stopped.run(LONG, "scenes:0:8:6")

    assert result.num_clips_encoded == 1


def test_levels_that_are_kept_are_refreshed_as_in_process(
    tmp_path: Path, engine: RayEngine
) -> None:
    first, other = (make_autoencoder(tmp_path / str(seed), video_seed=seed) for seed in (0, 1))
    job = SmallJob(kl_vae=IDENTITY, autoencoder=first, levels=("kl", "perceptual"))
    caches = [SmallCache(tmp_path / "ray", engine), SmallCache(tmp_path / "local")]
    for cache in caches:
        cache.ingest(job, SCENES)
        done = cache.refresh(replace(job, autoencoder=other))
        assert (done.made, done.result.num_kl_images) == ({"perceptual.video": NUM_CLIPS}, 0)
    ray, local = (tensors(cache, "perceptual") for cache in caches)
    assert ray == local


def test_a_file_that_is_gone_is_tried_again_when_it_is_back(
    tmp_path: Path, engine: RayEngine
) -> None:
    videos = tmp_path / "videos"
    synthesise(videos, num_clips=2, seconds=2, seed=1, fps=10, height=64, width=64)
    cache, job = SmallCache(tmp_path / "c", engine), SmallJob(kl_vae=IDENTITY)
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
