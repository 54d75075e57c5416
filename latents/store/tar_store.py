"""Shards as WebDataset tar files, whose stock loader yields one sounding sample a clip.

Members are ``<clip>.<field>.safetensors``, for example ``<clip>.kl.audio.safetensors``. Times,
owner and order are fixed, so equal tensors give equal bytes. A row of the log points at the
tensor's data inside its member, so that reading needs neither tar nor safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from latents.cache.storage import Storage
from latents.durable import writing_to
from latents.fields import FIELDS
from latents.recipe import canonical_json
from latents.store.kinds import SHARD_SUFFIXES
from latents.store.protocol import StoredTensor
from latents.store.shard_file import ShardFile

TAR_HEADER_BYTES = 512
"""POSIX ustar: one block before each member's content."""


class TarShardWriter:
    """A shard being written; see `latents.store.protocol.ShardWriter`.

    Args:
        storage: Of the cache.

    Raises:
        CacheError: The disk cannot be written.
    """

    def __init__(self, storage: Storage) -> None:
        self._url = storage.url
        self._file = ShardFile(storage)
        self._tar = TarWriter(
            self._file.stream, encoder=False, compress=False, mtime=0, user="mmldm", group="mmldm"
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of tensors added so far."""
        return self._file.num_bytes

    def add(self, clip: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Adds one clip's tensors by field name.

        Raises:
            ValueError: The shard has a tensor of this clip and field.
            CacheError: The disk is full or fails; the shard can then only be discarded.
        """
        for name in sorted(tensors):
            self._file.require_new(clip, name)
            tensor = np.ascontiguousarray(tensors[name])
            content = _member_bytes(clip, name, tensor)
            content_start = self._tar.tarstream.offset + TAR_HEADER_BYTES
            with writing_to(self._url):
                self._tar.write({"__key__": clip, f"{name}.safetensors": content})
            # safetensors puts the data last.
            data_start = content_start + len(content) - tensor.nbytes
            self._file.note(clip, name, tensor, offset=data_start)

    def seal(self) -> dict[tuple[str, str], StoredTensor]:
        """Makes the shard durable, reads it back and names it by its content.

        Raises:
            CacheError: The disk is full or fails; nothing of the shard remains.
        """
        try:
            with writing_to(self._url):
                self._tar.close()
                return self._file.seal(SHARD_SUFFIXES["tar"])
        finally:
            self.discard()

    def discard(self) -> None:
        """Forgets the shard; nothing of it remains."""
        # A tar stream writes what it still holds when it is collected, so it goes first; whether
        # a full disk takes that is no matter any more.
        with suppress(OSError):
            self._tar.close()
        self._file.discard()


def _member_bytes(clip: str, field: str, tensor: NDArray[Any]) -> bytes:
    # One metadata key: safetensors writes several in an order that varies by process.
    metadata = {"mmldm": canonical_json({"clip": clip, "field": field}).decode()}
    return safetensors.numpy.save({FIELDS[field].tensor: tensor}, metadata=metadata)
