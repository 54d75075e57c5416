"""The small tables of a pack, from the log's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.audible import loudness_of
from latents.cache.field_slices import FieldSlices
from latents.cache.pack_format import tables_of
from latents.cache.reader import CachedLevel, ClipRows
from latents.cache.source_split import SPLITS, split_of
from latents.errors import CacheError
from latents.fields import FIELDS

Tables = Mapping[str, NDArray[Any]]


def pack_tables(level: CachedLevel, fields: Sequence[FieldSlices]) -> Tables:
    """The tables of a pack of all clips of a level, by name in the order of the file.

    Args:
        level: Opened.
        fields: Of all its clips.

    Raises:
        CacheError: A clip has no sums, or of other channels; or a source's split is none.
    """
    rows = level.clips.rows_of(fields[0].field)
    of_level = FIELDS[fields[0].field].level
    tables: dict[str, NDArray[Any]] = {
        f"clips.{name}": rows[name].to_numpy()
        for name in (
            *("num_windows", "start_frame", "fps"),
            *("window_frames", "window_stride", "window_first_frame"),
        )
    }
    tables["clips.loudness_dbfs"] = loudness_of(level.clips, level=of_level).to_numpy()
    keys = np.array([key.encode() for key in level.clips.clip_keys()])
    tables["clips.key"] = keys.view(np.uint8).reshape(len(keys), -1)
    sources: list[str] = level.clips.sources().to_pylist()
    tables["clips.source"] = np.frombuffer(bytes.fromhex("".join(sources)), np.uint8)
    tables["clips.source"] = tables["clips.source"].reshape(len(keys), -1)
    tables["clips.split"] = _splits(level, sources)
    for one in fields:
        tables |= _field_tables(one, level.clips)
    dtypes = tables_of(of_level)
    return {
        name: tables[name].astype(np.dtype(dtype).newbyteorder("<"))
        for name, dtype in dtypes.items()
    }


def _splits(level: CachedLevel, sources: Sequence[str]) -> NDArray[Any]:
    """Of each clip 0, or one more than the number of the split that people named."""
    rows = level.annotations()
    named = dict(zip(rows["source"].to_pylist(), rows["split"].to_pylist(), strict=True))
    here = set(sources)
    numbers = {
        source: 1 + SPLITS.index(split_of(source, split, validation_share=0.0))
        for source, split in named.items()
        if split is not None and source in here
    }
    return np.array([numbers.get(source, 0) for source in sources])


def _field_tables(field: FieldSlices, clips: ClipRows) -> dict[str, NDArray[Any]]:
    rows = clips.rows_of(field.field)
    return {
        f"{field.field}.crc32c": field.crc32c,
        f"{field.field}.channel_count": _whole(field.field, rows["channel_count"]).to_numpy(),
        f"{field.field}.mean_sum": _channels(field.field, rows["mean_sum"]),
        f"{field.field}.square_sum": _channels(field.field, rows["square_sum"]),
    }


def _whole(field: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count:
        raise CacheError(
            f"{field} has clips without sums per channel, which whitening needs; make it again "
            "with `mmldm refresh`"
        )
    return column


def _channels(field: str, column: pa.ChunkedArray) -> NDArray[Any]:
    """Lists of one length, (clip, channel)."""
    lengths = pc.unique(pc.list_value_length(_whole(field, column)))
    if len(lengths) != 1:
        raise CacheError(
            f"{field} has clips with sums of different numbers of channels; make it again with "
            "`mmldm refresh`"
        )
    flat: NDArray[Any] = pc.list_flatten(column).to_numpy()
    return flat.reshape(len(column), -1)
