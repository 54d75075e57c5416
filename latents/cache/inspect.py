"""What is in a cache, as counts, sums, histograms and digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.histogram import Histogram, histogram_of
from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedLevel
from latents.cache.refs import Ref, read_ref
from latents.cache.rows import DTYPES
from latents.cache.snapshot import Snapshot, content_digest, load_snapshot
from latents.errors import CacheError
from latents.fields import FIELDS, LEVELS

_ITEM_BYTES = np.array([np.dtype(name).itemsize for name in DTYPES])
_SUMS = ("mean_sum", "square_sum")
_COLUMNS = (
    *("clip", "field", "source", "shard", "dtype", "shape", "digest", "channel_count", *_SUMS),
    *("num_windows", "loudness_dbfs", "encode_seconds"),
)
"""Without the checksums, which are most of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSummary:
    """One level of a snapshot."""

    num_sources: int
    num_clips: int
    num_windows: int
    content_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSummary:
    """One field of a snapshot."""

    recipe: str
    num_clips: int
    num_bytes: int
    mean: tuple[float, ...] | None
    """Mean of the posterior means, per channel."""
    std: tuple[float, ...] | None
    """Standard deviation of draws from the posteriors, per channel."""
    histograms: tuple[Histogram, ...]
    """Over its clips and shards; what the field has no values of is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSummary:
    """Answers `mmldm cache inspect`."""

    commit: int
    ref: str | None
    """Name of the ref whose recipes are summarised; None before a first ingest completed."""
    levels: dict[str, LevelSummary]
    fields: dict[str, FieldSummary]
    num_quarantined: int


def inspect_cache(layout: CacheLayout, *, ref: str = "current") -> CacheSummary:
    """Counts, histograms and digests of a ref, or of everything where no ingest has completed yet.

    Raises:
        DamagedError: The log is damaged.
    """
    pinned = read_ref(layout, ref)
    snapshot = load_snapshot(layout, pinned.commit if pinned else None)
    recipes = dict((pinned or _latest_recipes(snapshot)).recipes)
    rows = _rows_of(snapshot, dict(sorted(recipes.items())))
    return CacheSummary(
        commit=snapshot.commit,
        ref=ref if pinned else None,
        levels={
            level: _summarise_clips({name: rows[name] for name in names})
            for level, names in LEVELS.items()
            if all(name in rows for name in names)
        },
        fields={name: _summarise_field(name, recipes[name], rows[name]) for name in rows},
        num_quarantined=len(snapshot.open_quarantine()),
    )


def summarise_level(level: CachedLevel) -> LevelSummary:
    """Counts and digest of an open level; reads its rows again."""
    snapshot = load_snapshot(level.layout, level.commit)
    return _summarise_clips(_rows_of(snapshot, level.recipes))


def _rows_of(snapshot: Snapshot, recipes: Mapping[str, str]) -> dict[str, pa.Table]:
    """By field the rows of its recipe, in order of clip, each clip once."""
    # The rows of a clip's fields are in one file, which is read once for all of them.
    files = tuple(replace(file, read=cache(file.read)) for file in snapshot.latents_files)
    snapshot = replace(snapshot, latents_files=files)
    return {name: snapshot.rows_of(recipe).select(_COLUMNS) for name, recipe in recipes.items()}


def _summarise_clips(fields: Mapping[str, pa.Table]) -> LevelSummary:
    """Counts and digest of the clips that every field has, of rows as `_rows_of` gives them."""
    tables = list(fields.values())
    for other in fields.values():
        tables = [
            table.filter(pc.is_in(table["clip"], value_set=other["clip"])) for table in tables
        ]
    windows = pc.max_element_wise(*(table["num_windows"] for table in tables))
    sources = pa.chunked_array([c for table in tables for c in table["source"].chunks], pa.string())
    columns = ("clip", "field", "shape", "digest")
    rows = pa.concat_tables([table.select(columns) for table in tables])
    return LevelSummary(
        num_sources=len(pc.unique(sources)),
        num_clips=tables[0].num_rows,
        num_windows=pc.sum(windows).as_py() or 0,
        content_digest=content_digest(rows.to_pylist()),
    )


def _summarise_field(field: str, recipe: str, rows: pa.Table) -> FieldSummary:
    num_bytes = _tensor_bytes(rows)
    mean, std = _channel_moments(rows)
    return FieldSummary(
        recipe=recipe,
        num_clips=rows.num_rows,
        num_bytes=int(num_bytes.sum()),
        mean=mean,
        std=std,
        histograms=_histograms(field, rows, num_bytes),
    )


def _histograms(field: str, rows: pa.Table, num_bytes: NDArray[np.int64]) -> tuple[Histogram, ...]:
    shards = rows["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    found = [
        histogram_of(_numbers(rows["num_windows"]), title="windows per clip", unit="windows"),
        histogram_of(_numbers(rows["loudness_dbfs"]), title="loudness", unit="dBFS"),
        histogram_of(_numbers(rows["encode_seconds"]), title="encode time", unit="seconds"),
        histogram_of(
            np.bincount(shards, weights=num_bytes), title="tensors per shard", unit="bytes"
        ),
    ]
    if "(frame," in FIELDS[field].axes:
        frames = _numbers(pc.list_element(rows["shape"], 0))
        found.insert(0, histogram_of(frames, title="clip length", unit="frames"))
    return tuple(histogram for histogram in found if histogram is not None)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers, NaN where there is none."""
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return numbers


def _channel_moments(
    rows: pa.Table,
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    rows = rows.filter(pc.greater(rows["channel_count"], 0))
    if not rows.num_rows:
        return None, None
    count = pc.sum(rows["channel_count"]).as_py()
    mean, square = (_lists(rows[column]).sum(axis=0) / count for column in _SUMS)
    std = np.sqrt(np.maximum(0.0, square - mean * mean))
    return tuple(mean.tolist()), tuple(std.tolist())


def _lists(column: pa.ChunkedArray) -> NDArray[Any]:
    """Lists of one length, (row, element)."""
    flat: NDArray[Any] = pc.list_flatten(column).to_numpy()
    if len(pc.unique(pc.list_value_length(column))) != 1:
        raise CacheError(
            "rows of one recipe have sums of different numbers of channels; what wrote them is at "
            "fault. `mmldm cache verify` says what else is wrong"
        )
    return flat.reshape(len(column), -1)


def _tensor_bytes(rows: pa.Table) -> NDArray[np.int64]:
    if not rows.num_rows:
        return np.empty(0, np.int64)
    kinds = pc.index_in(rows["dtype"], value_set=pa.array(DTYPES)).to_numpy()
    num_bytes: NDArray[np.int64] = _lists(rows["shape"]).prod(axis=1) * _ITEM_BYTES[kinds]
    return num_bytes


def _latest_recipes(snapshot: Snapshot) -> Ref:
    """The last recipe of each field in the log, for a cache that has no ref yet."""
    pairs = snapshot.index.group_by(["field", "recipe"]).aggregate([("commit", "max")])
    latest = pairs.sort_by("commit_max")
    fields, recipes = latest["field"].to_pylist(), latest["recipe"].to_pylist()
    return Ref(commit=snapshot.commit, recipes=dict(zip(fields, recipes, strict=True)))
