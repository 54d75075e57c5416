"""Writing packs: the windows of one level, in order of key, into one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from latents.cache.field_slices import FieldSlices, field_slices
from latents.cache.pack_format import SUFFIX, PackedTensor, head_of, lay_out
from latents.cache.pack_header import PackHeader
from latents.cache.pack_sums import clip_sums
from latents.cache.pack_tables import Tables, pack_tables
from latents.cache.pack_verify import verify_pack
from latents.cache.reader import CachedLevel
from latents.cache.refs import read_recipe
from latents.cache.snapshot import content_digest
from latents.cache.source_split import SPLITS, split_of
from latents.cache.streaming import StreamingWindows
from latents.durable import make_folder, sync_folder, writing_to, written_aside
from latents.errors import CacheError, ConfigError
from latents.fields import FIELDS
from latents.whitening import Whitening, whitening_of

VALIDATION_SHARE = 0.1
"""What a pack's own whitening leaves out, as training does by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPack:
    """What `write_pack` wrote."""

    path: Path
    header: PackHeader
    num_clips: int
    num_windows: int
    num_bytes: int


def write_pack(
    level: CachedLevel,
    out: str | Path,
    *,
    ref: str,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> WrittenPack:
    """Writes all windows of a level into one new file; equal snapshots give equal bytes.

    Every window is compared with its CRC-32C as it is read, and the whole file again before it
    has its name. In memory are the tables, and the windows of one clip at a time.

    Args:
        level: Opened; its fields have a row for each window.
        out: The file to make.
        ref: The name by which the level was opened, for the record.
        on_clip: Told after each clip how many are written and how many there are.

    Raises:
        ConfigError: The file is there, has another suffix, or the level has no windows.
        CacheError: The level has no clips, these do not fit each other, or the disk is full.
        DamagedError: The cache's bytes are not what was written.
    """
    path = _free_path(out)
    _require_windows(level)
    fields = [
        field_slices(name, level.clips.rows_of(name), level.clips.window_counts())
        for name in level.recipes
    ]
    tables = pack_tables(level, fields)
    header = _header(level, tables, ref=ref)
    tensors = lay_out(_shapes(fields, tables, level.num_windows))
    head = head_of(tensors, header.to_json())
    with writing_to(path.parent):
        make_folder(path.parent)
        with written_aside(path.parent) as (file, aside):
            file.write(head)
            _write_tensors(file, level, tensors, tables, begin=len(head), on_clip=on_clip)
            file.flush()
            os.fsync(file.fileno())
            if damaged := verify_pack(aside):
                raise CacheError(f"{path} reads back differently: {damaged[0].problem}")
            _give_name(aside, path)
        sync_folder(path.parent)
    return WrittenPack(
        path=path,
        header=header,
        num_clips=len(level),
        num_windows=level.num_windows,
        num_bytes=len(head) + tensors[-1].end,
    )


def _free_path(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != SUFFIX or "://" in str(out):
        raise ConfigError(f"{out} is no name for a pack; wanted a file on this machine, *{SUFFIX}")
    if path.exists():
        raise _taken(path)
    return path


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"{path} is there already; remove it, or name another file")


def _give_name(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError:
        raise _taken(path) from None


def _require_windows(level: CachedLevel) -> None:
    without = [name for name in level.recipes if not FIELDS[name].has_row_per_window]
    if without:
        raise ConfigError(
            f"{', '.join(without)} has no row for each window, which a pack needs; name the level "
            "perceptual, or export to tar or zarr"
        )
    if not len(level):
        raise CacheError(f"{level.layout.url} has no clips of this level; there is nothing to pack")


def _write_tensors(
    file: BinaryIO,
    level: CachedLevel,
    tensors: Sequence[PackedTensor],
    tables: Tables,
    *,
    begin: int,
    on_clip: Callable[[int, int], None],
) -> None:
    """Each tensor to its place; clips in the order in which they lie in their shards."""
    offsets = {one.name: begin + one.offset for one in tensors}
    file.truncate(begin + tensors[-1].end)
    with StreamingWindows(level, level.clips) as stored:
        for done, clip in enumerate(_in_order_of_shard(level), start=1):
            windows = stored.index.windows_of(clip)
            for name, taken in stored.take(windows).items():
                place = offsets[name] + int(windows[0]) * taken[0].nbytes
                _write_at(file, place, taken)
            on_clip(done, len(level))
    for name, table in tables.items():
        _write_at(file, offsets[name], table)


def _write_at(file: BinaryIO, offset: int, tensor: NDArray[Any]) -> None:
    file.seek(offset)
    file.write(np.ascontiguousarray(tensor).data)


def _in_order_of_shard(level: CachedLevel) -> list[int]:
    """So that of a cache in a bucket each shard is fetched once."""
    rows = level.clips.rows_of(next(iter(level.recipes)))
    shards = rows["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    order: list[int] = np.lexsort((rows["offset"].to_numpy(), shards)).tolist()
    return order


def _shapes(
    fields: Sequence[FieldSlices], tables: Tables, num_windows: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    shapes = {one.field: (str(one.dtype), (num_windows, *one.shape)) for one in fields}
    return shapes | {name: (str(table.dtype), table.shape) for name, table in tables.items()}


def _header(level: CachedLevel, tables: Tables, *, ref: str) -> PackHeader:
    digest = hashlib.sha256()
    for table in tables.values():
        digest.update(table.tobytes())
    columns = ["clip", "field", "shape", "digest"]
    rows = pa.concat_tables([level.clips.rows_of(name).select(columns) for name in level.recipes])
    return PackHeader(
        ref=ref,
        commit=level.commit,
        level=FIELDS[next(iter(level.recipes))].level,
        content_digest=content_digest(rows.to_pylist()),
        recipes={name: read_recipe(level.layout, one) for name, one in level.recipes.items()},
        validation_share=VALIDATION_SHARE,
        whitening=_whitening(level, tables),
        tables_digest=digest.hexdigest(),
    )


def _whitening(level: CachedLevel, tables: Tables) -> dict[str, Whitening]:
    splits = (None, *SPLITS)
    annotated = [splits[number] for number in tables["clips.split"].tolist()]
    sources = level.clips.sources().to_pylist()
    is_train = [
        split_of(*one, validation_share=VALIDATION_SHARE) == "train"
        for one in zip(sources, annotated, strict=True)
    ]
    clips = np.flatnonzero(is_train)
    if not len(clips):
        return {}
    all_keys = level.clips.clip_keys()
    keys = [all_keys[clip] for clip in clips]
    return {name: whitening_of(clip_sums(keys, tables, name, clips)) for name in level.recipes}
