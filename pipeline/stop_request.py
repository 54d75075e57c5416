"""How a running job is asked to stop: to finish what is in hand, or at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StopRequest:
    """Whether a job goes on, finishes what is in hand, or stops at once; set from any thread.

    A job that was asked to finish and has not done so by its deadline is to stop at once.

    Args:
        drain_seconds: How long it may take to finish what is in hand.
        clock: Seconds that only grow.
    """

    def __init__(
        self, *, drain_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._drain_seconds = drain_seconds
        self._clock = clock
        self._deadline: float | None = None
        self._now = threading.Event()

    def finish(self) -> None:
        """Asks that nothing new is begun; asked again, it changes nothing."""
        if self._deadline is None:
            self._deadline = self._clock() + self._drain_seconds

    def stop(self) -> None:
        """Asks that all ends at once."""
        self.finish()
        self._now.set()

    @property
    def is_asked(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._deadline is not None

    @property
    def is_now(self) -> bool:
        """Whether what is in hand is to be left, too."""
        deadline = self._deadline
        return self._now.is_set() or (deadline is not None and self._clock() >= deadline)
