"""Many small reads from many shards: from memory at once, from a disk by several threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
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

    def read(self, runs: Sequence[Run]) -> None:
        """Fills the rows of all runs.

        Raises:
            DamagedError: A shard is missing, short, or cannot be read.
        """
        # Giving a read to another thread takes longer than a read from memory.
        left = [run for run in runs if not self._is_read_now(run)]
        # Neighbours together: whoever opens their shard, which may be fetched first, reads it too.
        size = -(-len(left) // self._num_threads) or 1
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

    def _is_read_now(self, run: Run) -> bool:
        """Whether the run was in memory, and nothing about it is out of the ordinary."""
        shard = self._shards.at_hand(run.shard)
        if shard is None:
            return False
        try:
            num_read = os.preadv(
                shard.descriptor,
                run.rows,  # type: ignore[arg-type]  # numpy tells of its buffers from 3.12 on
                run.offset,
                _WITHOUT_WAITING,
            )
        except OSError:
            return False
        return num_read == len(run.rows) * run.rows[0].nbytes

    def _read_all(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._read(run)

    def _read(self, run: Run) -> None:
        offset = run.offset
        with told_as_damage(run.shard, offset):
            shard = self._shards.open(run.shard)
            end = offset + len(run.rows) * run.rows[0].nbytes
            require_end(shard.descriptor, run.shard, end)
            for row in run.rows:
                fill(shard.descriptor, run.shard, row.data, offset)
                offset += row.nbytes
