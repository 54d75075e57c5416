"""Many small reads from many shards: from memory at once, from a disk by several threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from latents.cache.field_slices import Slice
from latents.cache.open_shards import OpenShards
from latents.cache.shard_bytes import fill, require_end, told_as_damage
from latents.cache.storage import Storage

_WITHOUT_WAITING = getattr(os, "RWF_NOWAIT", 0)
"""On Linux, a read that takes what is in memory and fails where a disk must be waited for."""

_Left = tuple[str, int, NDArray[np.uint8], int, int]
"""A `Slice`, and its number."""


class ShardReads:
    """Reads slices. Belongs to the process that made it.

    Args:
        storage: Of the cache.
        num_threads: Reads that wait for a disk at a time, or shards being fetched.
        max_open: Shards that are kept open.
    """

    def __init__(self, storage: Storage, *, num_threads: int, max_open: int) -> None:
        self._shards = OpenShards(storage, max_open=max_open)
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="shard-reads")

    def read(self, slices: Iterable[Slice]) -> list[int]:
        """Reads slices to where they are to go.

        Returns:
            The numbers, counted from 0 and in order, of those that are not what was written.

        Raises:
            DamagedError: A shard is missing, short, or cannot be read.
        """
        wrong, left = self._read_now(slices)
        if left:
            wrong += self._read_by_threads(left)
        return sorted(wrong)

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self._pool.shutdown()
        self._shards.close()

    def _read_now(self, slices: Iterable[Slice]) -> tuple[list[int], list[_Left]]:
        """Reads what is in memory: which slices are wrong, and which are left, since they were not.

        It is here that reading spends its time. To give a read to another thread takes longer than
        a read from memory, and what was just read is summed the fastest.
        """
        at_hand, preadv, crc32c = self._shards.at_hand, os.preadv, google_crc32c.value
        wrong: list[int] = []
        left: list[_Left] = []
        for number, (file, offset, room, checksum) in enumerate(slices):
            shard = at_hand(file)
            if shard is None:
                left.append((file, offset, room, checksum, number))
                continue
            try:
                num_read = preadv(
                    shard.descriptor,
                    [room],  # type: ignore[list-item]  # numpy tells of its buffers from 3.12 on
                    offset,
                    _WITHOUT_WAITING,
                )
            except OSError:
                num_read = -1
            if num_read != len(room):
                left.append((file, offset, room, checksum, number))
            elif crc32c(room) != checksum:
                wrong.append(number)
        return wrong, left

    def _read_by_threads(self, left: list[_Left]) -> list[int]:
        # Neighbours together: whoever opens their shard, which may be fetched first, reads it too.
        left.sort(key=_place)
        size = -(-len(left) // self._num_threads)
        parts = [left[first : first + size] for first in range(0, len(left), size)]
        reading = [self._pool.submit(self._read_waiting, part) for part in parts]
        # All of them, before a fault of one is told: they write into the caller's arrays.
        wait(reading)
        return [number for one in reading for number in one.result()]

    def _read_waiting(self, part: Sequence[_Left]) -> list[int]:
        wrong = []
        for file, offset, room, checksum, number in part:
            with told_as_damage(file, offset):
                shard = self._shards.open(file)
                require_end(shard.descriptor, file, offset + len(room))
                fill(shard.descriptor, file, room.data, offset)
            if google_crc32c.value(room) != checksum:
                wrong.append(number)
        return wrong


def _place(left: _Left) -> tuple[str, int]:
    return left[:2]
