"""Batches of windows in order, read ahead by a thread of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latents.cache.batches import GlobalBatches
from latents.cache.windows import NumberedWindows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """One rank's windows of a step, the reader's own."""

    step: int
    epochs: NDArray[np.int64]
    """Of each window."""
    windows: NDArray[np.int64]
    """Their numbers."""
    arrays: Mapping[str, Any]
    """By field (window, ...), as they are stored: arrays, or tensors where the windows are."""


def read_batch(windows: NumberedWindows, batches: GlobalBatches, step: int) -> Batch:
    """The batch of one step; raises as `Windows.take`."""
    epochs, numbers = batches.at(step)
    return Batch(step=step, epochs=epochs, windows=numbers, arrays=windows.take(numbers))


def require_same_windows(windows: NumberedWindows, batches: GlobalBatches) -> None:
    """Raises `ValueError` where an order is not of these windows."""
    if batches.order.num_windows != windows.num_windows:
        raise ValueError(
            f"the order is of {batches.order.num_windows} windows, but there are "
            f"{windows.num_windows}"
        )


class WindowLoader:
    """Batches in order of step; iterating again goes on after the last one given.

    A fault is raised by the batch that it belongs to, once those before it were given. One thread
    iterates at a time.

    Args:
        windows: To take them from.
        batches: Which.
        first_step: Where to begin.
        stop_step: Where to end, before this one; None: never.
        prefetch: Batches that are read ahead. So many are in memory beside those that were given.

    Raises:
        ValueError: The batches are of another number of windows, or ``prefetch`` is negative.
    """

    def __init__(
        self,
        windows: NumberedWindows,
        batches: GlobalBatches,
        *,
        first_step: int = 0,
        stop_step: int | None = None,
        prefetch: int = 2,
    ) -> None:
        require_same_windows(windows, batches)
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}; it must be 0 or more")
        self._windows, self._batches = windows, batches
        self._step, self._stop = first_step, stop_step
        self._prefetch = prefetch
        self._is_closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="window-loader")

    def __iter__(self) -> Iterator[Batch]:
        steps = count(self._step) if self._stop is None else iter(range(self._step, self._stop))
        ahead: deque[Future[Batch]] = deque()
        try:
            while True:
                if self._is_closed:
                    raise ValueError("the loader is closed")
                for step in islice(steps, self._prefetch + 1 - len(ahead)):
                    ahead.append(self._pool.submit(self._read, step))
                if not ahead:
                    return
                batch = ahead.popleft().result()
                self._step = batch.step + 1
                yield batch
        finally:
            for one in ahead:
                one.cancel()

    def state_dict(self) -> dict[str, int]:
        """Where to go on: after the last batch given, whatever was read ahead."""
        return self._batches.state_at(self._step)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a position the next time that it is iterated.

        Args:
            state: Of `state_dict`, be it of another world size.

        Raises:
            ConfigError: It is of other batches than these; says how they differ.
        """
        self._step = self._batches.step_in(state)

    def close(self) -> None:
        """Ends the thread, once what it is reading is read. The windows stay open."""
        self._is_closed = True
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, step: int) -> Batch:
        return read_batch(self._windows, self._batches, step)
