"""The file of a shard: written aside, read back, then named by its content."""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from latents.cache.storage import Storage
from latents.durable import partial_path, writing_to
from latents.errors import CacheError
from latents.store.protocol import StoredTensor

_READ_ONLY = 0o444
_BUFFER_BYTES = 2**20
"""Written together: the system keeps such a file in larger pieces, which are read sooner."""


class ShardFile:
    """A file that becomes a shard, and where the tensors in it lie.

    Args:
        storage: Of the cache.

    Raises:
        CacheError: The disk cannot be written.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        with writing_to(storage.url):
            self._aside = partial_path(storage.folder_aside())
            self.stream = self._aside.open("xb", buffering=_BUFFER_BYTES)
        self._stored: dict[tuple[str, str], StoredTensor] = {}
        self.num_bytes = 0
        """Of the tensors noted so far."""

    def require_new(self, clip: str, field: str) -> None:
        """Raises `ValueError` where a tensor was noted before: only one could be found again."""
        if (clip, field) in self._stored:
            raise ValueError(f"{field} of clip {clip} is in this shard already")

    def note(self, clip: str, field: str, tensor: NDArray[Any], *, offset: int) -> None:
        """Notes that a contiguous tensor's data begins at a byte of the file."""
        self._stored[clip, field] = StoredTensor(
            shard="",
            offset=offset,
            dtype=str(tensor.dtype),
            shape=tensor.shape,
            digest=hashlib.sha256(tensor.data).hexdigest(),
            crc32c=tuple(google_crc32c.value(row) for row in tensor),
        )
        self.num_bytes += tensor.nbytes

    def seal(self, suffix: str) -> dict[tuple[str, str], StoredTensor]:
        """Makes the file durable, reads it back and names it by its content.

        Raises:
            OSError: The disk is full or fails.
            CacheError: It reads back differently.
        """
        self.stream.flush()
        descriptor = self.stream.fileno()
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & _READ_ONLY)
        os.fsync(descriptor)
        shard = f"{self._read_back()}.{suffix}"
        self._storage.adopt(self._aside, f"shards/{shard}")
        return {key: replace(stored, shard=shard) for key, stored in self._stored.items()}

    def discard(self) -> None:
        """Forgets the file; of one that has no name yet nothing remains."""
        with suppress(OSError):
            self.stream.close()
        # What cannot be removed from a broken disk is left to gc.
        with suppress(OSError):
            self._aside.unlink(missing_ok=True)

    def _read_back(self) -> str:
        """SHA-256 of the file, after comparing every tensor on disk with what was given."""
        with self._aside.open("rb") as file:
            for (clip, field), stored in self._stored.items():
                file.seek(stored.offset)
                size = math.prod(stored.shape) * np.dtype(stored.dtype).itemsize
                if hashlib.sha256(file.read(size)).hexdigest() != stored.digest:
                    raise CacheError(
                        f"{self._storage.url}: {field} of clip {clip} reads back differently from "
                        "what was written; the disk or its driver is at fault"
                    )
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
