"""How long actors are busy and wait for each other, as the driver sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.stage_clock import Stage, StageTime


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """How many actors of a stage work, of how many that could."""

    num_busy: int
    num_actors: int


class ActorTimes:
    """Adds up the time of the actors of each stage.

    Args:
        has_gpus: Whether encoders run on GPUs, whose time is told by itself.
        clock: Seconds that only grow.
    """

    def __init__(self, *, has_gpus: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._taken = clock()
        self._now: dict[Stage, Busy] = {}
        self._busy: dict[Stage, float] = {}
        self._waiting: dict[Stage, float] = {}
        self._has_gpus = has_gpus

    def note(self, *, decoders: Busy, encoders: Busy) -> None:
        """From now on, until the next note, so many work."""
        self._count()
        self._now = {"decode": decoders, "encode": encoders}
        if self._has_gpus:
            self._now["gpu"] = encoders

    def take(self, *, every_seconds: float = 0.0) -> Iterator[StageTime]:
        """What went by since the last time; nothing before so many seconds have passed."""
        if self._clock() - self._taken < every_seconds:
            return
        self._count()
        self._taken = self._since
        for stage, busy in self._busy.items():
            yield StageTime(stage=stage, busy_seconds=busy, waiting_seconds=self._waiting[stage])
        self._busy, self._waiting = {}, {}

    def _count(self) -> None:
        now = self._clock()
        elapsed, self._since = now - self._since, now
        for stage, one in self._now.items():
            num_waiting = max(0, one.num_actors - one.num_busy)
            self._busy[stage] = self._busy.get(stage, 0.0) + one.num_busy * elapsed
            self._waiting[stage] = self._waiting.get(stage, 0.0) + num_waiting * elapsed
