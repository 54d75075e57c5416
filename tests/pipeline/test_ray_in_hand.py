"""What arrived is not asked for again, what was lost is, and who dies where is counted."""

from __future__ import annotations

from typing import cast

import pytest

from latents.errors import JobError
from pipeline.decode import SourceTask
from pipeline.ray_in_hand import MAX_LOST_CLIPS, Deaths, SourceInHand
from pipeline.scene_clips import SceneRef

ALIVE = {"a", "b"}


def task(*skipped: int) -> SourceTask:
    return SourceTask(
        uri="scenes:0:0:30",
        path=None,
        scene=SceneRef(seed=0, index=0, seconds=30),
        digest="d" * 64,
        skip_segments=frozenset(skipped),
    )


def asked_for(source: SourceInHand) -> frozenset[int]:
    return cast(SourceTask, source.attempt()).skip_segments


def test_deaths_at_one_segment_add_up_and_those_at_another_do_not() -> None:
    deaths = Deaths()
    for segment in (4, 4, 5, 4, 4, 4):
        deaths.add(segment, node="a")

    assert deaths.count(ALIVE) == 3


def test_deaths_on_nodes_that_are_gone_do_not_count() -> None:
    deaths = Deaths()
    for node in ("a", "gone", "b", "gone"):
        deaths.add(0, node=node)

    assert deaths.count(ALIVE) == 2


def test_another_attempt_skips_what_arrived() -> None:
    source = SourceInHand(task(1))
    assert asked_for(source) == {1}
    assert source.arrive(0)
    assert source.arrive(2)

    assert asked_for(source) == {0, 1, 2}
    assert source.running_segment == 3


def test_what_arrives_twice_is_new_once() -> None:
    source = SourceInHand(task())

    assert [source.arrive(segment) for segment in (0, 0, None, None)] == [True, False, True, False]


def test_a_source_is_finished_once_its_clips_are_encoded() -> None:
    source = SourceInHand(task())
    source.attempt()
    source.arrive(0)
    source.num_encoding = 1
    source.decoded(1)

    assert (source.is_decoded, source.is_finished) == (True, False)
    source.num_encoding = 0
    assert source.is_finished


def test_a_clip_that_is_lost_is_decoded_again_by_itself() -> None:
    source = SourceInHand(task())
    source.attempt()
    for segment in range(3):
        source.arrive(segment)
    source.decoded(3)
    source.lose(1)

    assert not source.is_finished
    assert asked_for(source) == {0, 2}
    source.arrive(1)
    source.decoded(3)
    assert source.is_finished


def test_a_clip_that_is_lost_while_its_source_is_decoded_takes_another_attempt() -> None:
    source = SourceInHand(task())
    source.attempt()
    source.arrive(0)
    source.lose(0)
    source.arrive(1)
    source.decoded(2)

    assert not source.is_decoded
    assert asked_for(source) == {1}


def test_clips_that_are_lost_without_end_stop_the_job() -> None:
    source = SourceInHand(task())
    for _ in range(MAX_LOST_CLIPS):
        source.arrive(0)
        source.lose(0)
    source.arrive(0)

    with pytest.raises(JobError, match="were lost before they could be encoded"):
        source.lose(0)
