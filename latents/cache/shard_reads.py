"""Many small reads from many shards: from memory at once, from a disk by several threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from latents.cache.field_slices import Run
from latents.cache.open_shards import OpenShards
from latents.cache.shard_bytes import fill, require_end, told_as_damage
from latents.cache.storage import Storage

_WITHOUT_WAITING = getattr(os, "RWF_NOWAIT", 0)
"""On Linux, a read that takes what is in memory and fails where a disk must be waited for."""


class ShardReads:
    """Reads runs of slices. Belongs to the process that made it.

    Args:
        storage: Of the cache.
        num_threads: Reads that wait for a disk at a time, or shards being fetched.
        max_open: Shards that are kept open.
    """

    def __init__(self, storage: Storage, *, num_threads: int, max_open: int) -> None:
        self._shards = OpenShards(storage, max_open=max_open)
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="shard-reads")

    def read(self, runs: Iterable[Run]) -> None:
        """Fills the room of all runs.

        Raises:
            DamagedError: A shard is missing, short, or cannot be read.
        """
        left = self._read_now(runs)
        if not left:
            return
        # Neighbours together: whoever opens their shard, which may be fetched first, reads it too.
        left.sort(key=_place)
        size = -(-len(left) // self._num_threads)
        parts = [left[first : first + size] for first in range(0, len(left), size)]
        reading = [self._pool.submit(self._read_all, part) for part in parts]
        # All of them, before a fault of one is told: they write into the caller's arrays.
        wait(reading)
        for one in reading:
            one.result()

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self._pool.shutdown()
        self._shards.close()

    def _read_now(self, runs: Iterable[Run]) -> list[Run]:
        """Reads what is in memory; gives what is not, or is out of the ordinary in any way.

        It is here that reading spends its time. To give a read to another thread takes longer than
        a read from memory.
        """
        at_hand, preadv, left = self._shards.at_hand, os.preadv, []
        for run in runs:
            file, offset, room = run
            shard = at_hand(file)
            if shard is None:
                left.append(run)
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
            if num_read != room.nbytes:
                left.append(run)
        return left

    def _read_all(self, runs: Sequence[Run]) -> None:
        for file, offset, room in runs:
            with told_as_damage(file, offset):
                shard = self._shards.open(file)
                require_end(shard.descriptor, file, offset + room.nbytes)
                fill(shard.descriptor, file, room.reshape(-1).data, offset)


def _place(run: Run) -> tuple[str, int]:
    return run[:2]
