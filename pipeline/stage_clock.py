"""How long the stages of a run are busy, and how long they wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["decode", "encode", "commit", "gpu"]
"""``decode`` is busy while its clip is waited for, ``gpu`` while some clip is being encoded on it.

Each counts for each of its workers: two that decode for a second are busy for two.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """What went by for a worker of a stage since it last said so; such times add up."""

    stage: Stage
    busy_seconds: float
    waiting_seconds: float

    @property
    def busy_share(self) -> float:
        """Of the time that went by, from 0 to 1; 0 where none did."""
        total = self.busy_seconds + self.waiting_seconds
        return self.busy_seconds / total if total > 0 else 0.0


class StageClock:
    """The time of one worker, or of something that threads share: busy while one of them is.

    Args:
        stage: Whose.
        clock: Seconds that only grow.
    """

    def __init__(self, stage: Stage, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._clock = stage, clock
        self._lock = threading.Lock()
        self._num_busy = 0
        self._busy = self._waiting = 0.0
        self._since = clock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Held while there is work."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    def take(self) -> StageTime:
        """What went by since the last time; from any thread, also in the middle of work."""
        with self._lock:
            self._count()
            taken = StageTime(
                stage=self._stage, busy_seconds=self._busy, waiting_seconds=self._waiting
            )
            self._busy = self._waiting = 0.0
        return taken

    def _begin(self) -> None:
        with self._lock:
            self._count()
            self._num_busy += 1

    def _end(self) -> None:
        with self._lock:
            self._count()
            self._num_busy -= 1

    def _count(self) -> None:
        now = self._clock()
        if self._num_busy:
            self._busy += now - self._since
        else:
            self._waiting += now - self._since
        self._since = now


class StageTimes:
    """Times of all workers of all stages, added up; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[Stage, StageTime] = {}

    def add(self, taken: StageTime) -> None:
        """Counts what went by for a worker."""
        with self._lock:
            before = self._totals.get(taken.stage)
            busy = before.busy_seconds if before else 0.0
            waiting = before.waiting_seconds if before else 0.0
            self._totals[taken.stage] = StageTime(
                stage=taken.stage,
                busy_seconds=busy + taken.busy_seconds,
                waiting_seconds=waiting + taken.waiting_seconds,
            )

    def totals(self) -> Mapping[Stage, StageTime]:
        """By stage, those that have said anything."""
        with self._lock:
            return dict(self._totals)
