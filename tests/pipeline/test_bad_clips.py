"""What a clip does to its decoder becomes a row of the quarantine; its neighbours become clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from latents.cache.reader import CachedClip
from latents.cache.snapshot import content_digest, load_snapshot
from latents.cache.verify import verify_cache
from pipeline.decode import SourceDecoded, SourceTask
from pipeline.isolation import IsolatedDecoder
from pipeline.job import ClipTensors, DecodeClips, Task
from pipeline.ray_decode_actor import DecodeActor
from pipeline.scene_clips import SceneRef, scene_digest
from pipeline.settings import RunSettings
from tests.pipeline.small_jobs import SmallCache, SmallJob
from tests.pipeline.unruly_decode import NOTES, TARGET

if TYPE_CHECKING:
    from pipeline.engine_ray import RayEngine

ROOT = Path(__file__).resolve().parents[2]
GOOD_A, BAD, GOOD_B = "scenes:0:1:4", "scenes:1:1:4", "scenes:2:1:4"
BAD_SCENE = "scenes:1:0:4"
SCENE = SceneRef(seed=1, index=0, seconds=4)
NUM_SEGMENTS = 2
DECODE_FUNCTION = "unruly_decode:misbehave_at_target"
OVERRIDES = (
    "clip.segment_seconds=2",
    "clip.tail_frames=5",
    f"run.memory_limit_bytes={300 * 2**20}",
)
CLASSES = {
    "segfault": ("DecoderCrashedError", "was killed by SIGSEGV"),
    "exit": ("DecoderCrashedError", "exited with status 3; it last said: [h264 @ 0x1]"),
    "hang": ("DecodeTimeoutError", "gave nothing for 2 s and was killed"),
    "grow": ("DecoderMemoryError", "over the 300 MiB of run.memory_limit_bytes"),
    "memory error": ("DecoderFaultError", "MemoryError: no room for a picture"),
    "attribute error": ("DecoderFaultError", "AttributeError: 'NoneType' object"),
    "be killed": ("WorkerDiedError", "was killed by SIGKILL"),
}
"""Of each deed the class, and some of the words, of its row."""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The children do what the environment says, and note each attempt in this file."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{ROOT}")
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))
    unruly = partial(IsolatedDecoder, decode_function=DECODE_FUNCTION)
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", unruly)
    return tmp_path / "notes"


@pytest.fixture
def misbehave(notes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what happens at which segment of the bad source."""
    return lambda deed: monkeypatch.setenv(TARGET, f"{BAD_SCENE} {deed}")


@pytest.fixture(scope="module")
def small(small_kl_vae: Path) -> SmallJob:
    return SmallJob(kl_vae=small_kl_vae, levels=("clip",), overrides=OVERRIDES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small: SmallJob) -> SmallCache:
    """What all three sources become when nothing happens."""
    cache = SmallCache(tmp_path_factory.mktemp("undisturbed") / "c")
    cache.run(small, GOOD_A, BAD, GOOD_B)
    return cache


def digest(cache: SmallCache, *, but: Callable[[CachedClip], bool] = lambda _: False) -> str:
    """Of the tensors of all clips but some."""
    clips = [clip for clip in cache.level("clip") if not but(clip)]
    return content_digest(asdict(row) for clip in clips for row in clip.rows.values())


def is_bad(clip: CachedClip, *, from_segment: int = 0) -> bool:
    row = clip.rows["clip.video"]
    return row.source == scene_digest(SCENE) and row.segment >= from_segment


def quarantine(cache: SmallCache) -> list[tuple[str, int | None, str, str, str]]:
    return [
        (row["source"], row["segment"], row["stage"], row["error_class"], row["message"])
        for row in load_snapshot(cache.layout).open_quarantine()
    ]


@pytest.mark.parametrize("deed", CLASSES)
def test_what_a_clip_does_to_its_decoder_is_a_row_of_its_class_between_two_good_clips(
    tmp_path: Path,
    small: SmallJob,
    undisturbed: SmallCache,
    notes: Path,
    misbehave: Callable[[str], None],
    deed: str,
) -> None:
    misbehave(f"0 {deed}")
    limit = ("run.time_limit_seconds=2",) if deed == "hang" else ()
    job = replace(small, overrides=(*small.overrides, *limit))
    cache = SmallCache(tmp_path / "c")

    result = cache.run(job, GOOD_A, BAD, GOOD_B)

    ((source, segment, stage, error_class, message),) = quarantine(cache)
    wanted_class, words = CLASSES[deed]
    assert (source, segment, stage, error_class) == (BAD_SCENE, None, "decode", wanted_class)
    assert words in message
    assert "(2 attempts, the last with " in message
    assert (result.num_clips_encoded, result.num_quarantined) == (2 * NUM_SEGMENTS, 1)
    assert digest(cache) == digest(undisturbed, but=is_bad)
    assert len(notes.read_text().split()) == 2
    assert verify_cache(cache.layout) == []


@pytest.mark.parametrize("deed", ["segfault", "attribute error"])
def test_only_the_segment_at_which_it_dies_is_charged_and_those_before_it_stay(
    tmp_path: Path,
    small: SmallJob,
    undisturbed: SmallCache,
    notes: Path,
    misbehave: Callable[[str], None],
    deed: str,
) -> None:
    misbehave(f"1 {deed}")
    cache = SmallCache(tmp_path / "c")

    cache.run(small, GOOD_A, BAD, GOOD_B)

    ((source, segment, _, error_class, message),) = quarantine(cache)
    assert (source, segment, error_class) == (BAD_SCENE, 1, CLASSES[deed][0])
    assert message.endswith("; what lies behind segment 1 could not be reached")
    assert digest(cache) == digest(undisturbed, but=partial(is_bad, from_segment=1))
    assert notes.read_text().split() == ["decord", "pyav"]


def test_a_decoder_that_is_killed_once_from_outside_changes_no_byte_and_no_row(
    tmp_path: Path,
    small: SmallJob,
    undisturbed: SmallCache,
    notes: Path,
    misbehave: Callable[[str], None],
) -> None:
    misbehave("1 be killed once")
    cache = SmallCache(tmp_path / "c")

    result = cache.run(small, GOOD_A, BAD, GOOD_B)

    assert (result.num_clips_encoded, result.num_quarantined) == (3 * NUM_SEGMENTS, 0)
    assert quarantine(cache) == []
    assert digest(cache) == digest(undisturbed)
    assert notes.read_text().split() == ["decord", "decord"]


def test_one_that_was_killed_each_time_is_tried_again_by_the_next_run(
    tmp_path: Path,
    small: SmallJob,
    undisturbed: SmallCache,
    misbehave: Callable[[str], None],
) -> None:
    cache = SmallCache(tmp_path / "c")
    misbehave("1 be killed")
    cache.run(small, GOOD_A, BAD, GOOD_B)
    misbehave("1 nothing")
    result = cache.run(small, GOOD_A, BAD, GOOD_B)

    assert result.num_clips_encoded == 1
    assert digest(cache) == digest(undisturbed)


def test_more_attempts_are_made_where_the_settings_say_so(
    tmp_path: Path, small: SmallJob, notes: Path, misbehave: Callable[[str], None]
) -> None:
    misbehave("0 segfault")
    job = replace(small, overrides=(*small.overrides, "run.decode_attempts=3"))

    SmallCache(tmp_path / "c").run(job, BAD)

    assert notes.read_text().split() == ["decord", "pyav", "pyav"]


def test_a_source_that_was_left_has_no_end(
    small: SmallJob, misbehave: Callable[[str], None]
) -> None:
    misbehave("1 hang")
    is_asked = False
    producer = DecodeClips(small.settings, should_stop=lambda: is_asked)
    events = producer.produce(SourceTask(uri=BAD_SCENE, path=None, scene=SCENE, digest="0" * 64))
    first = next(events)
    is_asked = True

    assert isinstance(first, ClipTensors)
    assert not any(isinstance(event, SourceDecoded) for event in events)
    producer.close()


@pytest.mark.parametrize(
    "setting", [{"decode_attempts": 0}, {"memory_limit_bytes": 2**20}, {"memory_limit_bytes": -1}]
)
def test_limits_under_which_nothing_could_be_decoded_are_refused(setting: dict[str, int]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"run\.{name} is {setting[name]}; it must be"):
        RunSettings(**setting)


def test_memory_may_be_without_a_limit() -> None:
    assert RunSettings(memory_limit_bytes=0).memory_limit_bytes == 0


class UnrulyDecodeActor(DecodeActor):
    """A decode actor whose children misbehave too."""

    def decode(self, task: Task) -> Iterator[Any]:
        """Events of a task, decoded by the function that misbehaves."""
        from pipeline import job

        job.IsolatedDecoder = partial(  # type: ignore[assignment, misc]
            IsolatedDecoder, decode_function=DECODE_FUNCTION
        )
        yield from super().decode(task)


@pytest.fixture
def ray_engine() -> Iterator[RayEngine]:
    import ray

    from pipeline.engine_ray import RayEngine

    ray.shutdown()  # so that the actors get the environment of now
    engine = RayEngine(num_workers=1, in_flight_bytes=2**30)
    engine.start()
    yield engine
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_ray_it_is_the_same_row_between_the_same_clips(
    tmp_path: Path,
    small: SmallJob,
    undisturbed: SmallCache,
    notes: Path,
    misbehave: Callable[[str], None],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misbehave("1 segfault")
    monkeypatch.setattr("pipeline.engine_ray.DecodeActor", UnrulyDecodeActor)
    cache = SmallCache(tmp_path / "c", request.getfixturevalue("ray_engine"))

    cache.run(small, GOOD_A, BAD, GOOD_B)

    ((source, segment, _, error_class, _),) = quarantine(cache)
    assert (source, segment, error_class) == (BAD_SCENE, 1, "DecoderCrashedError")
    assert digest(cache) == digest(undisturbed, but=partial(is_bad, from_segment=1))
    assert notes.read_text().split() == ["decord", "pyav"]
