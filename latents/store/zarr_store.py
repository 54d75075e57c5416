"""Shards as Zarr v3 in one uncompressed zip file, which stock zarr and xarray open.

A clip is a group, a field an array of it: ``<clip>/kl.audio``. An array is one chunk without
codecs, so that the tensor lies in the zip file as it is; a row of the log points there, and
reading needs neither zip nor Zarr. Dates, order and attributes are fixed, so equal tensors give
equal bytes. The root holds the metadata of all once more, for those who open the whole.
"""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.core.group import ConsolidatedMetadata, GroupMetadata
from zarr.core.metadata import ArrayV3Metadata
from zarr.dtype import parse_dtype

from latents.cache.storage import Storage
from latents.durable import writing_to
from latents.fields import FIELDS
from latents.store.kinds import SHARD_SUFFIXES
from latents.store.protocol import StoredTensor
from latents.store.shard_file import ShardFile

# xarray takes the fields of a clip as one dataset, in which a name has one length: only the
# windows of two fields are as many.
_PICTURES = ("channel", "row", "column")
_MEL_IMAGES = ("mel_channel", "mel_row", "mel_column")
DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "clip.video": ("frame", *_PICTURES),
    "clip.audio": ("audio_channel", "audio_sample"),
    "kl.video": ("frame", *_PICTURES),
    "kl.audio": ("window", *_MEL_IMAGES),
    "perceptual.video": ("window", *_PICTURES),
    "perceptual.audio": ("window", *_MEL_IMAGES),
}
"""Names of each field's axes."""

_METADATA = "zarr.json"
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""Zip knows none before it."""


class ZarrShardWriter:
    """A shard being written; see `latents.store.protocol.ShardWriter`.

    Args:
        storage: Of the cache.

    Raises:
        CacheError: The disk cannot be written.
    """

    def __init__(self, storage: Storage) -> None:
        self._url = storage.url
        self._file = ShardFile(storage)
        self._zip = zipfile.ZipFile(self._file.stream, "w", zipfile.ZIP_STORED)
        self._clips: dict[str, dict[str, ArrayV3Metadata]] = {}

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
        with writing_to(self._url):
            if clip not in self._clips:
                self._clips[clip] = {}
                self._write(f"{clip}/{_METADATA}", _as_json(GroupMetadata()))
            for name in sorted(tensors):
                self._file.require_new(clip, name)
                self._add_array(clip, name, np.ascontiguousarray(tensors[name]))

    def seal(self) -> dict[tuple[str, str], StoredTensor]:
        """Makes the shard durable, reads it back and names it by its content.

        Raises:
            CacheError: The disk is full or fails; nothing of the shard remains.
        """
        try:
            with writing_to(self._url):
                self._write(_METADATA, _as_json(_root(self._clips)))
                self._zip.close()
                return self._file.seal(SHARD_SUFFIXES["zarr"])
        finally:
            self.discard()

    def discard(self) -> None:
        """Forgets the shard; nothing of it remains."""
        # A zip file writes its directory when it is collected, so it goes first; whether a full
        # disk takes that is no matter any more.
        with suppress(OSError):
            self._zip.close()
        self._file.discard()

    def _add_array(self, clip: str, field: str, tensor: NDArray[Any]) -> None:
        array = _array(field, str(tensor.dtype), tensor.shape)
        self._clips[clip][field] = array
        self._write(f"{clip}/{field}/{_METADATA}", _as_json(array))
        chunk = array.encode_chunk_key((0,) * tensor.ndim)
        offset = self._write(f"{clip}/{field}/{chunk}", tensor.data)
        self._file.note(clip, field, tensor, offset=offset)

    def _write(self, name: str, content: bytes | memoryview) -> int:
        """Adds a file to the zip file; the byte at which its content begins."""
        entry = zipfile.ZipInfo(name, _FIRST_DATE)
        entry.create_system = 3  # Unix, on every system
        entry.external_attr = (stat.S_IFREG | 0o444) << 16
        entry.file_size = memoryview(content).nbytes  # one of 2 GiB has a longer header
        with self._zip.open(entry, "w") as file:
            offset = self._file.stream.tell()
            file.write(content)
        return offset


@lru_cache(maxsize=1024)
def _array(field: str, dtype: str, shape: tuple[int, ...]) -> ArrayV3Metadata:
    """An array of one chunk, as its bytes are in memory on a little-endian machine."""
    chunk = tuple(max(length, 1) for length in shape)
    return ArrayV3Metadata(
        shape=shape,
        data_type=parse_dtype(np.dtype(dtype), zarr_format=3),
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": chunk}},
        chunk_key_encoding={"name": "default", "separator": "/"},
        fill_value=0,
        codecs=[BytesCodec(endian="little")],
        attributes={"axes": FIELDS[field].axes},
        dimension_names=DIMENSIONS[field],
    )


def _root(clips: Mapping[str, Mapping[str, ArrayV3Metadata]]) -> GroupMetadata:
    groups = {
        clip: GroupMetadata(consolidated_metadata=ConsolidatedMetadata(metadata=dict(arrays)))
        for clip, arrays in clips.items()
    }
    return GroupMetadata(consolidated_metadata=ConsolidatedMetadata(metadata=dict(groups)))


def _as_json(metadata: ArrayV3Metadata | GroupMetadata) -> bytes:
    # Not by zarr: its layout is a setting of whoever runs it, and some versions write nulls.
    document = {key: value for key, value in metadata.to_dict().items() if value is not None}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
