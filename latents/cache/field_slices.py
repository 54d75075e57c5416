"""Where each window's slice of a field lies, as columns: 12 bytes a clip and 4 a window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout
from latents.errors import CacheError

_MAX_BYTES = 2**62
"""No file is so long; up to here, sums of a place and a length do not overflow."""


Slice = tuple[str, int, NDArray[np.uint8], int]
"""A window's bytes: the shard's file, where in it they begin, where they are to go, their CRC-32C.

A plain tuple, as a window is read in ten microseconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldSlices:
    """The slices of one field that belong to the windows of some clips."""

    field: str
    shape: tuple[int, ...]
    """Of one slice."""
    dtype: np.dtype[Any]
    shard_files: tuple[str, ...]
    shards: NDArray[np.int32]
    """Of each clip, the number of its shard."""
    offsets: NDArray[np.int64]
    """Of each clip, the byte of the shard where its first slice begins."""
    crc32c: NDArray[np.uint32]
    """Of each window, over all clips."""

    @property
    def slice_bytes(self) -> int:
        """Bytes of one window."""
        return math.prod(self.shape) * self.dtype.itemsize

    def place(self, clip: int, number: int) -> tuple[str, int]:
        """The shard of one of a clip's slices, and the byte where it begins."""
        offset = int(self.offsets[clip]) + number * self.slice_bytes
        return self.shard_files[self.shards[clip]], offset

    def of_windows(
        self,
        windows: NDArray[np.int64],
        clips: NDArray[np.int64],
        numbers: NDArray[np.int64],
        room: NDArray[np.uint8],
    ) -> Iterator[Slice]:
        """The slices of some windows, in the order given.

        Args:
            windows: Their numbers.
            clips: Of each window, the number of its clip.
            numbers: Of each window, its number within the clip.
            room: (window, byte), where they are to go.
        """
        files = [self.shard_files[shard] for shard in self.shards[clips].tolist()]
        offsets = self.offsets[clips] + numbers * self.slice_bytes
        return zip(files, offsets.tolist(), room, self.crc32c[windows].tolist(), strict=True)


def field_slices(field: str, rows: pa.Table, num_windows: NDArray[np.int64]) -> FieldSlices:
    """The slices that a field's latents rows point at.

    Args:
        field: Its name.
        rows: One for each clip, at least one.
        num_windows: Of each clip.

    Raises:
        CacheError: The clips differ in shape or type, or have not one slice for each window.
    """
    _require_one_shape(field, rows)
    _require_row_per_window(field, rows, num_windows)
    shards = rows["shard"].combine_chunks().dictionary_encode()
    slices = FieldSlices(
        field=field,
        shape=tuple(rows["shape"][0].as_py()[1:]),
        dtype=np.dtype(rows["dtype"][0].as_py()),
        shard_files=tuple(map(CacheLayout.shard, shards.dictionary.to_pylist())),
        shards=shards.indices.to_numpy(),
        offsets=rows["offset"].to_numpy(),
        crc32c=pc.list_flatten(rows["crc32c"]).to_numpy(),
    )
    end = int(slices.offsets.max()) + int(num_windows.max()) * slices.slice_bytes
    if end > _MAX_BYTES:
        raise CacheError(
            f"{field} has a row that ends at byte {end} of a shard; no file is so long"
        )
    return slices


def _require_one_shape(field: str, rows: pa.Table) -> None:
    """Raises where a clip's windows have another shape or type than the first clip's."""
    num_axes = pc.list_value_length(rows["shape"]).to_numpy()
    is_other = num_axes != num_axes[0]
    if not is_other.any():
        shapes = pc.list_flatten(rows["shape"]).to_numpy().reshape(len(is_other), -1)
        is_other = (shapes[:, 1:] != shapes[0, 1:]).any(axis=1)
        is_other |= pc.not_equal(rows["dtype"], rows["dtype"][0]).to_numpy()
    if is_other.any():
        first, other = (rows.slice(i, 1).to_pylist()[0] for i in (0, int(is_other.argmax())))
        raise CacheError(
            f"{field} of clip {other['clip']} is {other['dtype']} {other['shape'][1:]} a window, "
            f"but that of clip {first['clip']} is {first['dtype']} {first['shape'][1:]}"
        )


def _require_row_per_window(field: str, rows: pa.Table, num_windows: NDArray[np.int64]) -> None:
    lengths = pc.list_element(rows["shape"], 0).to_numpy()
    is_other = lengths != num_windows
    if is_other.any():
        clip = int(is_other.argmax())
        raise CacheError(
            f"{field} of clip {rows['clip'][clip]} has {lengths[clip]} rows for "
            f"{num_windows[clip]} windows; make it again with `mmldm refresh`"
        )
