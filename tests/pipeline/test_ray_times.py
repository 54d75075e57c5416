"""The busy and waiting time of actors, from how many work at a time."""

from __future__ import annotations

from pipeline.ray_times import ActorTimes, Busy
from pipeline.stage_clock import Stage, StageTime


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def time_of(stage: Stage, busy: float, waiting: float) -> StageTime:
    return StageTime(stage=stage, busy_seconds=busy, waiting_seconds=waiting)


def test_each_actor_counts_for_as_long_as_it_works_or_waits() -> None:
    clock = Clock()
    times = ActorTimes(has_gpus=False, clock=clock)
    times.note(decoders=Busy(num_busy=3, num_actors=4), encoders=Busy(num_busy=0, num_actors=2))
    clock.seconds = 2.0
    times.note(decoders=Busy(num_busy=1, num_actors=4), encoders=Busy(num_busy=2, num_actors=2))
    clock.seconds = 3.0

    assert list(times.take()) == [time_of("decode", 7.0, 5.0), time_of("encode", 2.0, 4.0)]
    clock.seconds = 4.0
    assert list(times.take()) == [time_of("decode", 1.0, 3.0), time_of("encode", 2.0, 0.0)]


def test_the_gpus_wait_while_their_encoders_do() -> None:
    clock = Clock()
    times = ActorTimes(has_gpus=True, clock=clock)
    times.note(decoders=Busy(num_busy=1, num_actors=1), encoders=Busy(num_busy=1, num_actors=4))
    clock.seconds = 1.0

    assert list(times.take())[-1] == time_of("gpu", 1.0, 3.0)


def test_times_are_told_no_more_often_than_asked_for() -> None:
    clock = Clock()
    times = ActorTimes(has_gpus=False, clock=clock)
    both = Busy(num_busy=1, num_actors=1)
    times.note(decoders=both, encoders=both)

    clock.seconds = 0.5
    assert list(times.take(every_seconds=1.0)) == []
    clock.seconds = 1.0
    assert [one.busy_seconds for one in times.take(every_seconds=1.0)] == [1.0, 1.0]
