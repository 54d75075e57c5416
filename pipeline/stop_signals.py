"""SIGINT and SIGTERM as requests to a running job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from pipeline.stop_request import StopRequest

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], None]


class StopSignals:
    """The first signal asks a job to finish what is in hand, the second to stop at once.

    A third one acts as it would have before. For the main thread.

    Args:
        stop: What the job looks at.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        self.received: list[int] = []
        """Numbers of the signals so far."""

    def __enter__(self) -> Self:
        self._install(self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals are noted and nothing else happens, until this is left."""
        self._install(self._note)
        try:
            yield
        finally:
            self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._note(number, frame)
        if len(self.received) == 1:
            self._stop.finish()
        else:
            self._stop.stop()
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def _install(self, handler: Handler) -> None:
        for number in _NUMBERS:
            signal.signal(number, handler)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
