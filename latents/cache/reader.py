"""Reading tensors by the log's rows: one contiguous pread, every slice checked by its CRC."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout, find_cache
from latents.cache.liveness import last_of_each
from latents.cache.refs import read_recipe, require_ref
from latents.cache.rows import LatentRow, latent_row, rows_to_table
from latents.cache.shard_bytes import failed_checksum, fill, require_end, told_as_damage
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.channel_sums import ClipChannelSums
from latents.errors import CacheError, StaleFieldError
from latents.fields import LEVELS, Level
from latents.recipe import Recipe, recipe_differences

_ROWS_AT_A_TIME = 1024


def read_tensor(
    layout: CacheLayout, row: LatentRow, start: int = 0, stop: int | None = None
) -> NDArray[Any]:
    """Slices [start, stop) of a tensor along its first axis, as an array of the caller's own.

    Raises:
        ValueError: The tensor has no such slices.
        DamagedError: The shard is missing or short, or a slice's CRC-32C differs; with the
            shard's path and the offset of the first damaged slice, or of the shard's end.
    """
    stop = row.shape[0] if stop is None else stop
    if not 0 <= start <= stop <= row.shape[0]:
        raise ValueError(f"no slices [{start}, {stop}) in a tensor of shape {tuple(row.shape)}")
    dtype = np.dtype(row.dtype)
    slice_bytes = math.prod(row.shape[1:]) * dtype.itemsize
    offset, size = row.offset + start * slice_bytes, (stop - start) * slice_bytes
    content = _pread(layout, row.shard, offset, size)
    tensor = np.frombuffer(content, dtype=dtype).reshape(stop - start, *row.shape[1:])
    for index, part in enumerate(tensor, start=start):
        if google_crc32c.value(part) != row.crc32c[index]:
            raise failed_checksum(
                layout.shard(row.shard),
                row.offset + index * slice_bytes,
                field=row.field,
                clip=row.clip,
                index=index,
            )
    return tensor


def _pread(layout: CacheLayout, shard: str, offset: int, size: int) -> bytearray:
    name = layout.shard(shard)
    with told_as_damage(name, offset), layout.storage.open(name) as file:
        require_end(file.fileno(), name, offset + size)
        content = bytearray(size)
        fill(file.fileno(), name, memoryview(content), offset)
    return content


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedClip:
    """One clip of a level: its rows by field name."""

    clip: str
    rows: Mapping[str, LatentRow]

    @property
    def num_windows(self) -> int:
        """Training windows of the clip; 0 on a level without windows."""
        return max((row.num_windows or 0) for row in self.rows.values())


class ClipRows(Sequence[CachedClip]):
    """Clips in order of key. They stay columns until one is asked for: a row is 5 KB as objects.

    Args:
        fields: By field name, the latents rows of the same clips in the same order.
    """

    def __init__(self, fields: Mapping[str, pa.Table]) -> None:
        self._fields = dict(fields)
        self._clips: pa.ChunkedArray = next(iter(self._fields.values()))["clip"]

    def __len__(self) -> int:
        return len(self._clips)

    @overload
    def __getitem__(self, index: int) -> CachedClip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CachedClip]: ...
    def __getitem__(self, index: int | slice) -> CachedClip | Sequence[CachedClip]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self[position] for position in positions]
        return next(self._between(positions, positions + 1))

    def __iter__(self) -> Iterator[CachedClip]:
        for start in range(0, len(self), _ROWS_AT_A_TIME):
            yield from self._between(start, start + _ROWS_AT_A_TIME)

    def _between(self, start: int, stop: int) -> Iterator[CachedClip]:
        records = [table.slice(start, stop - start).to_pylist() for table in self._fields.values()]
        for rows in zip(*records, strict=True):
            by_field = zip(self._fields, map(latent_row, rows), strict=True)
            yield CachedClip(clip=rows[0]["clip"], rows=dict(by_field))

    @staticmethod
    def of(clips: Sequence[CachedClip]) -> ClipRows:
        """Some clips of one level, at least one, as columns; in their order, whatever it is."""
        if isinstance(clips, ClipRows):
            return clips
        return ClipRows(
            {
                name: rows_to_table("latents", (clip.rows[name] for clip in clips))
                for name in clips[0].rows
            }
        )

    def rows_of(self, field: str) -> pa.Table:
        """The latents rows of a field, one for each clip, in order."""
        return self._fields[field]

    def clip_keys(self) -> list[str]:
        """Keys of all clips, in order."""
        keys: list[str] = self._clips.to_pylist()
        return keys

    def clips(self) -> pa.Array:
        """Keys of all clips, in order, as a column."""
        return self._clips.combine_chunks()

    def sources(self) -> pa.Array:
        """Digest of each clip's source, in order."""
        return next(iter(self._fields.values()))["source"].combine_chunks()

    def sums(self, field: str) -> Iterator[ClipChannelSums]:
        """What whitening needs of a field, in order of clip."""
        columns = ("clip", "channel_count", "mean_sum", "square_sum")
        for batch in self._fields[field].select(columns).to_batches(_ROWS_AT_A_TIME):
            for clip, count, mean, square in zip(*(c.to_pylist() for c in batch), strict=True):
                yield ClipChannelSums(
                    clip=clip, channel_count=count, mean_sum=mean, square_sum=square
                )

    def where(self, is_wanted: pa.Array) -> ClipRows:
        """The clips for which this is true, in order."""
        return ClipRows({name: table.filter(is_wanted) for name, table in self._fields.items()})

    def find(self, clip: str) -> CachedClip | None:
        """The clip of that key, or None."""
        position = pc.index(self._clips, clip).as_py()
        return None if position < 0 else self[position]

    @property
    def num_windows(self) -> int:
        """Training windows of all clips."""
        return int(self.window_counts().sum())

    def window_counts(self) -> NDArray[np.int64]:
        """Training windows of each clip, in order; 0 on a level without windows."""
        columns = [table["num_windows"] for table in self._fields.values()]
        counts: NDArray[np.int64] = pc.fill_null(pc.max_element_wise(*columns), 0).to_numpy()
        return counts


class CachedLevel:
    """One level of a cache at one commit, with the recipes it was asked for.

    Args:
        layout: The cache.
        snapshot: The rows.
        level: For example ``kl``.
        recipes: Field name to recipe digest.
    """

    def __init__(
        self,
        layout: CacheLayout,
        snapshot: Snapshot,
        *,
        level: Level,
        recipes: Mapping[str, str],
    ) -> None:
        self.layout = layout
        self.commit = snapshot.commit
        # Not the snapshot: its index of all recipes would stay in memory.
        self._read_all = snapshot.read_all
        self.recipes = {field: recipes[field] for field in LEVELS[level]}
        self.clips = ClipRows(
            _of_the_same_clips({f: snapshot.rows_of(r) for f, r in self.recipes.items()})
        )

    @property
    def num_windows(self) -> int:
        """Training windows of all clips."""
        return self.clips.num_windows

    def annotations(self) -> pa.Table:
        """What people said of sources by this commit: the latest row of each."""
        return last_of_each(self._read_all("annotations"), "source")

    def __iter__(self) -> Iterator[CachedClip]:
        return iter(self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def read(
        self, clip: CachedClip, field: str, start: int = 0, stop: int | None = None
    ) -> NDArray[Any]:
        """Slices [start, stop) of a clip's tensor; raises `DamagedError` as `read_tensor`."""
        return read_tensor(self.layout, clip.rows[field], start, stop)


def open_cache(
    root: Path | str,
    *,
    level: Level,
    ref: str = "current",
    recipes: Mapping[str, Recipe] | None = None,
) -> CachedLevel:
    """Opens one level of a cache, refusing latents that another recipe made.

    Args:
        root: The cache's folder or URL.
        level: ``clip`` or ``kl``.
        ref: Which snapshot.
        recipes: The recipes that the reader was made for, by field. None takes the ref's.

    Raises:
        CacheError: There is no such cache, ref or level.
        StaleFieldError: A field was made by another recipe; it names the parts that differ.
    """
    layout = find_cache(root)
    pinned = require_ref(layout, ref)
    if level not in LEVELS:
        raise CacheError(f"{root}: there is no level {level!r}; there are {', '.join(LEVELS)}")
    absent = [field for field in LEVELS[level] if field not in pinned.recipes]
    if absent:
        present = ", ".join(sorted(pinned.recipes)) or "no fields"
        raise CacheError(
            f"{root}: ref {ref!r} has no {' or '.join(absent)}; it has {present}. "
            f"Ingest with `--levels {level}` to add it"
        )
    for field, wanted in (recipes or {}).items():
        require_recipe(layout, field, pinned.recipes, wanted)
    snapshot = load_snapshot(layout, pinned.commit)
    return CachedLevel(layout, snapshot, level=level, recipes=pinned.recipes)


def _of_the_same_clips(fields: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The rows of those clips that every field has."""
    same = dict(fields)
    for other in fields.values():
        same = {
            name: table.filter(pc.is_in(table["clip"], value_set=other["clip"]))
            for name, table in same.items()
        }
    return same


def require_recipe(
    layout: CacheLayout, field: str, found: Mapping[str, str], wanted: Recipe
) -> None:
    """Raises `StaleFieldError` where a field's recipe is another than the wanted one."""
    if field in found and found[field] != wanted.digest:
        differences = recipe_differences(read_recipe(layout, found[field]), wanted)
        raise StaleFieldError(
            layout.url,
            field,
            found[field],
            wanted.digest,
            differences,
            "Name the settings and encoder the cache was made with, or make the others beside "
            "them with `mmldm refresh`",
        )
