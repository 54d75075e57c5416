"""Shards that are open for reading, so many at most: those opened first are closed first."""

from __future__ import annotations

import os
from threading import Lock

from latents.cache.storage import Storage


class OpenShard:
    """An open file. It closes when nobody has it any more, so never while it is being read.

    Args:
        descriptor: Of the file; belongs to this object from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class OpenShards:
    """Shards opened once and kept, for the threads of one process.

    Args:
        storage: Of the cache.
        max_open: Beyond this, a shard is open only while it is read.
    """

    def __init__(self, storage: Storage, *, max_open: int) -> None:
        self._storage = storage
        self._max_open = max_open
        self._shards: dict[str, OpenShard] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._shards)

    def at_hand(self, shard: str) -> OpenShard | None:
        """A shard that is open already, by its file; None where it is not."""
        return self._shards.get(shard)

    def open(self, shard: str) -> OpenShard:
        """A shard, opened if it is not; raises as `Storage.open`."""
        found = self._shards.get(shard)
        if found is None:
            # Not under the lock: to fetch one from a bucket takes a while.
            with self._storage.open(shard) as file:
                opened = OpenShard(os.dup(file.fileno()))
            with self._lock:
                found = self._shards.setdefault(shard, opened)
                while len(self._shards) > self._max_open:
                    del self._shards[next(iter(self._shards))]
        return found

    def close(self) -> None:
        """Keeps none any more."""
        with self._lock:
            self._shards.clear()
