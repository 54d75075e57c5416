"""Windows of a level read from its shards when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latents.cache.field_slices import FieldSlices, field_slices
from latents.cache.reader import CachedClip, CachedLevel, ClipRows
from latents.cache.shard_bytes import failed_checksum
from latents.cache.shard_reads import ShardReads
from latents.cache.windows import WindowIndex, WindowShapes, room_for
from latents.errors import DamagedError
from latents.fields import FIELDS

_MAX_OPEN = 256
"""Shards open at a time. A process may have 1,024 files by default, and needs others too."""


class StreamingWindows:
    """All windows of some clips of a level whose fields have a row for each window.

    Windows are numbered clip after clip, in the order given. A window costs one read a field,
    straight into the caller's array, and its CRC-32C is checked. In memory are about 100 bytes a
    clip and 4 a window and field.

    Of a cache in a bucket, shards are fetched whole and kept on this machine. An order that goes
    everywhere fetches each once where there is room for all of them, and again and again where
    there is not.

    Several threads may take windows at once. Pickled, or in a forked process, it opens its files
    anew.

    Args:
        level: ``perceptual``, opened.
        clips: Of this level, at least one.
        num_threads: Reads that wait for a disk at a time, or shards being fetched.

    Raises:
        CacheError: A clip's tensors have another shape or type than those of the others.
        ValueError: There are no clips, or a field has no row for each window.
    """

    def __init__(
        self, level: CachedLevel, clips: Sequence[CachedClip], *, num_threads: int = 8
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be at least 1")
        if not clips:
            raise ValueError("there are no clips to read")
        without = [name for name in level.recipes if not FIELDS[name].has_row_per_window]
        if without:
            raise ValueError(f"{', '.join(without)} has no row for each window")
        columns = ClipRows.of(clips)
        counts = columns.window_counts()
        keys = columns.clips().to_numpy(zero_copy_only=False).astype(np.bytes_)
        self.index = WindowIndex(keys, counts)
        self._fields = [field_slices(f, columns.rows_of(f), counts) for f in level.recipes]
        self._storage = level.layout.storage
        self._num_threads = num_threads
        self._by_process: dict[int, ShardReads] = {}

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return self.index.num_windows

    @property
    def shapes(self) -> WindowShapes:
        """By field, shape and type of one window."""
        return {slices.field: (slices.shape, slices.dtype) for slices in self._fields}

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Windows by number; see `latents.cache.windows.Windows`.

        Raises:
            DamagedError: A shard is missing or short, or a slice's CRC-32C differs; with the
                shard's path, and the clip, field and number of the slice.
        """
        clips, numbers = self.index.find(windows)
        taken = room_for(len(windows), self.shapes, out)
        if not len(windows):
            return taken
        wrong = self._reads().read(
            one
            for slices in self._fields
            for one in slices.of_windows(windows, clips, numbers, _as_bytes(taken[slices.field]))
        )
        if wrong:
            field, window = divmod(wrong[0], len(windows))
            raise self._damage(self._fields[field], int(clips[window]), int(numbers[window]))
        return taken

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        return self.index.place(window)

    def close(self) -> None:
        """Closes the files and ends the threads of this process; taking windows opens them anew."""
        reads = self._by_process.pop(os.getpid(), None)
        if reads is not None:
            reads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_by_process": {}}

    def _reads(self) -> ShardReads:
        # By process: what a fork brings along has threads that are not there, and may be locked.
        process = os.getpid()
        reads = self._by_process.get(process)
        if reads is None:
            fresh = ShardReads(self._storage, num_threads=self._num_threads, max_open=_MAX_OPEN)
            reads = self._by_process.setdefault(process, fresh)
        return reads

    def _damage(self, slices: FieldSlices, clip: int, number: int) -> DamagedError:
        shard, offset = slices.place(clip, number)
        return failed_checksum(
            shard,
            offset,
            field=slices.field,
            clip=self.index.clip(clip),
            index=number,
        )


def _as_bytes(windows: NDArray[Any]) -> NDArray[np.uint8]:
    """(window, byte), of the same memory."""
    return windows.reshape(len(windows), -1).view(np.uint8)
