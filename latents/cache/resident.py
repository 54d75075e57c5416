"""Windows of a level in memory: a batch is one gather."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.cache.reader import CachedClip, CachedLevel
from latents.errors import CacheError
from latents.fields import FIELDS

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
        if not clips:
            raise ValueError("there are no clips to read")
        without = [name for name in level.recipes if not FIELDS[name].has_row_per_window]
        if without:
            raise ValueError(f"{', '.join(without)} has no row for each window")
        self._clips = [clip.clip for clip in clips]
        self._firsts = np.array([0, *accumulate(clip.num_windows for clip in clips)], np.int64)
        self.num_windows = int(self._firsts[-1])
        self._tensors = {name: self._room(name, clips) for name in level.recipes}
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            read = pool.map(
                lambda number: self._read(level, clips[number], number), range(len(clips))
            )
            for num_read, _ in enumerate(read, start=1):
                if on_clip is not None:
                    on_clip(num_read, len(clips))

    def take(self, windows: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
        """Windows by number: for each field (window, ...), a copy of the caller's own.

        Raises:
            IndexError: There is no such window.
        """
        if len(windows) and not 0 <= windows.min() <= windows.max() < self.num_windows:
            raise IndexError(f"there are {self.num_windows} windows; {windows} has others")
        taken = {}
        for name, tensor in self._tensors.items():
            taken[name] = np.empty((len(windows), *tensor.shape[1:]), tensor.dtype)
            # "clip" has no bounds to check, which is several times faster.
            np.take(tensor, windows, axis=0, out=taken[name], mode="clip")
        return taken

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        clip = int(np.searchsorted(self._firsts, window, side="right")) - 1
        return self._clips[clip], window - int(self._firsts[clip])

    def _room(self, field: str, clips: Sequence[CachedClip]) -> NDArray[Any]:
        first = clips[0].rows[field]
        for clip in clips:
            row = clip.rows[field]
            if (row.shape[1:], row.dtype) != (first.shape[1:], first.dtype):
                raise CacheError(
                    f"{field} of clip {clip.clip} is {row.dtype} {row.shape[1:]} a window, but "
                    f"that of clip {clips[0].clip} is {first.dtype} {first.shape[1:]}"
                )
            if row.shape[0] != clip.num_windows:
                raise CacheError(
                    f"{field} of clip {clip.clip} has {row.shape[0]} rows for {clip.num_windows} "
                    "windows; make it again with `mmldm refresh`"
                )
        return np.empty((self.num_windows, *first.shape[1:]), np.dtype(first.dtype))

    def _read(self, level: CachedLevel, clip: CachedClip, number: int) -> None:
        first, last = self._firsts[number], self._firsts[number + 1]
        for name, room in self._tensors.items():
            room[first:last] = level.read(clip, name)
