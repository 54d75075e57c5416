"""A source whose decoder dies is tried again a bounded number of times, and charged justly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.errors import (
    DecodeError,
    DecoderCrashedError,
    DecoderMemoryError,
    TooShortError,
    WorkerDiedError,
)
from pipeline.decode import SegmentRejected, SourceDecoded, SourceTask
from pipeline.scene_clips import SceneRef
from pipeline.source_attempts import SourceAttempts

URI = "scenes:0:0:9"
CRASHED = DecoderCrashedError(URI, "it crashed")
KILLED = WorkerDiedError(URI, "it was killed")


def attempts_at(*, skip: frozenset[int] = frozenset(), max_attempts: int = 2) -> SourceAttempts:
    scene = SceneRef(seed=0, index=0, seconds=9)
    task = SourceTask(uri=URI, path=None, scene=scene, digest="0" * 64, skip_segments=skip)
    return SourceAttempts(task, backend="decord", max_attempts=max_attempts)


def rejected(segment: int | None) -> SegmentRejected:
    return SegmentRejected(segment=segment, error=TooShortError(URI, "short"))


def come(attempts: SourceAttempts, *segments: int) -> list[bool]:
    return [attempts.is_new(rejected(segment)) for segment in segments]


def test_the_rest_is_what_has_not_come_out() -> None:
    attempts = attempts_at(skip=frozenset({3}))
    come(attempts, 0, 1)

    assert attempts.may_go_on(CRASHED)
    assert attempts.rest.skip_segments == {0, 1, 3}


def test_nothing_comes_out_twice() -> None:
    attempts = attempts_at()

    assert come(attempts, 0, 1, 0, 1, 2) == [True, True, False, False, True]
    assert [attempts.is_new(rejected(None)) for _ in range(2)] == [True, False]
    assert attempts.is_new(SourceDecoded(num_segments=3))


def test_the_segment_at_which_it_died_each_time_is_charged_and_what_was_tried_is_told() -> None:
    attempts = attempts_at(skip=frozenset({1}))
    come(attempts, 0)
    assert attempts.may_go_on(CRASHED)
    assert not attempts.may_go_on(DecoderMemoryError(URI, "it held too much"))

    charged, end = attempts.give_up(DecoderMemoryError(URI, "it held too much"))

    assert isinstance(charged, SegmentRejected)
    assert charged.segment == 2
    assert isinstance(charged.error, DecoderMemoryError)
    assert charged.error.reason == (
        "it held too much (2 attempts, the last with pyav); what lies behind segment 2 could not "
        "be reached"
    )
    assert end == SourceDecoded(num_segments=3)


def test_a_source_of_which_nothing_came_out_is_charged_whole() -> None:
    attempts = attempts_at(max_attempts=1)
    assert not attempts.may_go_on(CRASHED)

    charged, end = attempts.give_up(CRASHED)

    assert isinstance(charged, SegmentRejected)
    assert (charged.segment, str(charged.error)) == (None, f"{URI}: it crashed")
    assert end == SourceDecoded(num_segments=0)


def test_progress_between_two_deaths_begins_the_count_anew() -> None:
    attempts = attempts_at()
    assert attempts.may_go_on(CRASHED)
    come(attempts, 0)
    assert attempts.may_go_on(CRASHED)
    come(attempts, 1)
    assert attempts.may_go_on(CRASHED)
    assert not attempts.may_go_on(CRASHED)


def test_a_decoder_that_died_by_its_own_fault_is_replaced_by_pyav_for_the_rest_of_the_source() -> (
    None
):
    attempts = attempts_at()
    assert attempts.backend == "decord"
    attempts.may_go_on(CRASHED)
    come(attempts, 0)
    attempts.may_go_on(KILLED)
    assert attempts.backend == "pyav"


def test_a_decoder_that_was_killed_from_outside_is_tried_again_as_it_was() -> None:
    attempts = attempts_at()
    assert attempts.may_go_on(KILLED)
    assert attempts.backend == "decord"


@given(
    progress=st.lists(st.booleans(), min_size=40, max_size=40),
    max_attempts=st.integers(1, 4),
    num_segments=st.integers(0, 6),
)
def test_attempts_are_bounded_by_the_segments_there_are(
    progress: list[bool], max_attempts: int, num_segments: int
) -> None:
    attempts = attempts_at(max_attempts=max_attempts)
    num_attempts, next_segment = 1, 0
    for moves in progress:
        if moves and next_segment < num_segments:
            come(attempts, next_segment)
            next_segment += 1
        if not attempts.may_go_on(DecodeError(URI, "any")):
            break
        num_attempts += 1
    assert num_attempts <= max_attempts * (num_segments + 1)


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_without_progress_there_are_as_many_attempts_as_are_allowed(max_attempts: int) -> None:
    attempts = attempts_at(max_attempts=max_attempts)

    assert [attempts.may_go_on(CRASHED) for _ in range(max_attempts)] == [
        *[True] * (max_attempts - 1),
        False,
    ]
