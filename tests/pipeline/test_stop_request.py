"""A job is asked to finish what is in hand, and stops at once when that takes too long."""

from __future__ import annotations

from pipeline.stop_request import StopRequest


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_nothing_is_asked_at_first() -> None:
    stop = StopRequest(drain_seconds=60)
    assert not stop.is_asked
    assert not stop.is_now


def test_what_is_in_hand_may_be_finished_until_the_deadline() -> None:
    clock = Clock()
    stop = StopRequest(drain_seconds=60, clock=clock)
    stop.finish()
    clock.seconds = 59.9
    stop.finish()
    assert stop.is_asked
    assert not stop.is_now
    clock.seconds = 60
    assert stop.is_now


def test_a_second_request_is_for_now() -> None:
    stop = StopRequest(drain_seconds=60)
    stop.finish()
    stop.stop()
    assert stop.is_now


def test_to_stop_at_once_begins_nothing_new_either() -> None:
    stop = StopRequest(drain_seconds=60)
    stop.stop()
    assert stop.is_asked
