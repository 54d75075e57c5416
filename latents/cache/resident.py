"""Windows of a level in memory: a batch is one gather."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.streaming import StreamingWindows
from latents.cache.windows import WindowShapes, gather, room_for

_READ_THREADS = 8
"""Clips read at a time: what waits is the disk."""


class ResidentWindows:
    """All windows of some clips of a level whose fields have a row for each window.

    Windows are numbered clip after clip, in the order given. Each field takes its stored bytes:
    20 KB a window for both of the perceptual level.

    Args:
        level: ``perceptual``, opened.
        clips: Of this level, at least one.
        on_clip: Told after each clip how many are read and how many there are.

    Raises:
        CacheError: A clip's tensors have another shape or type than those of the others.
        DamagedError: A tensor is not what was written.
        ValueError: There are no clips, or a field has no row for each window.
    """

    def __init__(
        self,
        level: CachedLevel,
        clips: Sequence[CachedClip],
        *,
        on_clip: Callable[[int, int], None] | None = None,
    ) -> None:
        with (
            StreamingWindows(level, clips, num_threads=_READ_THREADS) as stored,
            ThreadPoolExecutor(_READ_THREADS) as pool,
        ):
            self.index = stored.index
            self.tensors = room_for(stored.num_windows, stored.shapes, None)
            """By field, all windows; the cache's own values, not to be written to."""
            read = pool.map(lambda clip: self._read(stored, clip), range(len(clips)))
            for num_read, _ in enumerate(read, start=1):
                if on_clip is not None:
                    on_clip(num_read, len(clips))

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return self.index.num_windows

    @property
    def shapes(self) -> WindowShapes:
        """Of one window."""
        return {name: (all_.shape[1:], all_.dtype) for name, all_ in self.tensors.items()}

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Windows by number: a copy of the caller's own; see `latents.cache.windows.Windows`."""
        self.index.require(windows)
        return gather(self.tensors, windows, out)

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        return self.index.place(window)

    def _read(self, stored: StreamingWindows, clip: int) -> None:
        windows = self.index.windows_of(clip)
        first, stop = int(windows[0]), int(windows[-1]) + 1
        stored.take(windows, out={name: all_[first:stop] for name, all_ in self.tensors.items()})
