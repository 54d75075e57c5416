"""Shards as WebDataset tar files, whose stock loader yields one sounding sample a clip.

Members are ``<clip>.<field>.safetensors``, for example ``<clip>.kl.audio.safetensors``. Times,
owner and order are fixed, so equal tensors give equal bytes. A row of the log points at the
tensor's data inside its member, so that reading needs neither tar nor safetensors.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from latents.cache.storage import Storage
from latents.durable import partial_path, writing_to
from latents.errors import CacheError
from latents.fields import FIELDS
from latents.recipe import canonical_json
from latents.store.protocol import StoredTensor

TAR_HEADER_BYTES = 512
"""POSIX ustar: one block before each member's content."""

_READ_ONLY = 0o444


class TarShardWriter:
    """A shard being written; see `latents.store.protocol.ShardWriter`.

    Args:
        storage: Of the cache.

    Raises:
        CacheError: The disk cannot be written.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        with writing_to(storage.url):
            self._aside = partial_path(storage.folder_aside())
            self._file = self._aside.open("xb")
        self._tar = TarWriter(
            self._file, encoder=False, compress=False, mtime=0, user="mmldm", group="mmldm"
        )
        self._positions: dict[tuple[str, str], StoredTensor] = {}
        self.num_bytes = 0

    def add(self, clip: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Adds one clip's tensors by field name.

        Raises:
            CacheError: The disk is full or fails; the shard can then only be discarded.
        """
        for name in sorted(tensors):
            tensor = np.ascontiguousarray(tensors[name])
            content = _member_bytes(clip, name, tensor)
            content_start = self._tar.tarstream.offset + TAR_HEADER_BYTES
            with writing_to(self._storage.url):
                self._tar.write({"__key__": clip, f"{name}.safetensors": content})
            # safetensors puts the data last.
            data_start = content_start + len(content) - tensor.nbytes
            self._positions[clip, name] = _describe(tensor, data_start)
            self.num_bytes += tensor.nbytes

    def seal(self) -> dict[tuple[str, str], StoredTensor]:
        """Makes the shard durable, reads it back and names it by its content.

        Raises:
            CacheError: The disk is full or fails; nothing of the shard remains.
        """
        try:
            with writing_to(self._storage.url):
                self._tar.close()
                self._file.flush()
                descriptor = self._file.fileno()
                os.fchmod(descriptor, os.fstat(descriptor).st_mode & _READ_ONLY)
                os.fsync(descriptor)
                shard = f"{self._read_back()}.tar"
                self._storage.adopt(self._aside, f"shards/{shard}")
        finally:
            self.discard()
        return {key: replace(stored, shard=shard) for key, stored in self._positions.items()}

    def discard(self) -> None:
        """Forgets the shard; nothing of it remains."""
        # A tar stream writes what it still holds when it is collected, so it goes first; whether
        # a full disk takes that is no matter any more.
        with suppress(OSError):
            self._tar.close()
        with suppress(OSError):
            self._file.close()
        # What cannot be removed from a broken disk is left to gc.
        with suppress(OSError):
            self._aside.unlink(missing_ok=True)

    def _read_back(self) -> str:
        """SHA-256 of the file, after comparing every tensor on disk with what was given."""
        with self._aside.open("rb") as file:
            for (clip, name), stored in self._positions.items():
                file.seek(stored.offset)
                size = math.prod(stored.shape) * np.dtype(stored.dtype).itemsize
                if hashlib.sha256(file.read(size)).hexdigest() != stored.digest:
                    raise CacheError(
                        f"{self._storage.url}: {name} of clip {clip} reads back differently from "
                        "what was written; the disk or its driver is at fault"
                    )
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


def _member_bytes(clip: str, field: str, tensor: NDArray[Any]) -> bytes:
    # One metadata key: safetensors writes several in an order that varies by process.
    metadata = {"mmldm": canonical_json({"clip": clip, "field": field}).decode()}
    return safetensors.numpy.save({FIELDS[field].tensor: tensor}, metadata=metadata)


def _describe(tensor: NDArray[Any], offset: int) -> StoredTensor:
    return StoredTensor(
        shard="",
        offset=offset,
        dtype=str(tensor.dtype),
        shape=tensor.shape,
        digest=hashlib.sha256(tensor.data).hexdigest(),
        crc32c=tuple(google_crc32c.value(row) for row in tensor),
    )
