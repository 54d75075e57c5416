"""Verification of shards: each must hash to its name, and hold the tensors that rows say."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from io import BytesIO
from itertools import groupby, pairwise
from typing import BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.commit import read_rows
from latents.cache.damage import Damage, damage_of
from latents.cache.hashing_reader import HashingReader, read_at
from latents.cache.layout import CacheLayout
from latents.cache.rows import LatentRow, latent_row
from latents.cache.verify_log import VerifiedLog
from latents.durable import reading_from, reason
from latents.errors import DamagedError
from latents.recipe import sha256_hex

HASH_THREADS = min(4, os.cpu_count() or 1)
"""Shards read at a time. One disk gives no more to more of them."""


def verify_shards(
    layout: CacheLayout,
    log: VerifiedLog,
    *,
    needed: Set[str],
    on_shard: Callable[[int, int], None],
) -> list[Damage]:
    """What is wrong with the shards that rows name.

    Args:
        layout: The cache.
        log: Its rows.
        needed: Names of the shards that must be there; others may have been removed.
        on_shard: Called with (shards checked, shards in all).
    """
    named = log.shards()
    with reading_from(layout.url):
        present = {file.name for file in layout.storage.list("shards")}
    wanted = [shard for shard in named if shard in needed or layout.shard(shard) in present]
    rows_of = lru_cache(HASH_THREADS)(
        lambda commit: read_rows(layout, "latents", log.commits[commit].files["latents"])
    )

    def verify(shard: str) -> list[Damage]:
        try:
            rows = _rows_in([rows_of(commit) for commit in named[shard]], shard)
        except DamagedError as error:
            return [damage_of(error)]
        name = layout.shard(shard)
        if name not in present:  # a copy on this machine may outlive an object in a bucket
            return list(_lost(name, rows, "the shard is missing"))
        return list(verify_shard(layout, name, rows, others=named.keys()))

    damaged: list[Damage] = []
    pool = ThreadPoolExecutor(HASH_THREADS)
    try:
        for num_done, found in enumerate(pool.map(verify, wanted), start=1):
            damaged.extend(found)
            on_shard(num_done, len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    return damaged


def verify_shard(
    layout: CacheLayout, name: str, rows: Sequence[LatentRow], *, others: Set[str]
) -> Iterator[Damage]:
    """Hashes a shard, and compares it with each tensor's row.

    Args:
        layout: The cache.
        name: Of the file, relative to the cache.
        rows: All that lie in it, in order of their offsets.
        others: File names of the cache's shards, to recognise what was exchanged.
    """
    try:
        with _opened(layout, name) as file:
            yield from _compare(file, name, rows, others)
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        cause = "is missing" if is_gone else f"cannot be read ({reason(error)})"
        yield from _lost(name, rows, f"the shard {cause}")


def _opened(layout: CacheLayout, name: str) -> BinaryIO:
    try:
        return layout.storage.open(name)
    except DamagedError:  # a bucket's storage keeps no copy of what is not as named
        return BytesIO(layout.storage.read(name))


def _compare(
    file: BinaryIO, name: str, rows: Sequence[LatentRow], others: Set[str]
) -> Iterator[Damage]:
    wanted = _digest_in(name)
    reader = HashingReader(file)
    try:
        damaged = [one for row in rows for one in _verify_tensor(reader.read, name, row)]
        found = reader.digest()
    except OSError as error:
        yield from _read_each(file, name, rows, error)
        return
    if found == wanted:
        is_intact = ", though the shard is as it was written"
        yield from (replace(one, problem=one.problem + is_intact) for one in damaged)
        yield from () if damaged else _overlapping(name, rows)
    elif other := next((shard for shard in others if _digest_in(shard) == found), None):
        yield from _lost(name, rows, f"the file holds the content of shards/{other}")
    else:
        yield from damaged or _compare_digests(file, name, rows)


def _digest_in(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _read_each(
    file: BinaryIO, name: str, rows: Sequence[LatentRow], error: OSError
) -> Iterator[Damage]:
    """The tensors of a shard, some of which the disk does not give."""
    num_faults = 0
    for row in rows:
        try:
            damaged = list(_verify_tensor(partial(read_at, file), name, row))
        except OSError as fault:
            damaged = [_of(row, name, f"cannot be read ({reason(fault)})")]
        num_faults += len(damaged)
        yield from damaged
    if not num_faults:
        problem = f"the shard cannot be read ({reason(error)}), but all its tensors can"
        yield Damage(path=name, problem=problem)


def _compare_digests(file: BinaryIO, name: str, rows: Sequence[LatentRow]) -> Iterator[Damage]:
    """The fault of a shard of which no slice fails its checksum."""
    damaged = [
        _of(row, name, "does not hash to its digest")
        for row in rows
        if sha256_hex(read_at(file, row.offset, row.offset + _num_bytes(row))) != row.digest
    ]
    problem = "the shard does not hash to its name, but all its tensors are intact"
    yield from damaged or [Damage(path=name, problem=problem)]


def _verify_tensor(
    read: Callable[[int, int], bytes], name: str, row: LatentRow
) -> Iterator[Damage]:
    """Damaged slices of a tensor; those that follow one another are one fault."""
    content, size = read(row.offset, row.offset + _num_bytes(row)), _slice_bytes(row)
    num_slices = len(content) // size
    failed = [
        index
        for index in range(num_slices)
        if google_crc32c.value(content[index * size : (index + 1) * size]) != row.crc32c[index]
    ]
    for first, last in _runs(failed):
        verb = "fails its" if first == last else "fail their"
        yield _of(row, name, f"{_named(first, last)}, {verb} CRC-32C", first)
    if num_slices < row.shape[0]:
        lost = _named(num_slices, row.shape[0] - 1)
        verb = "lies" if num_slices == row.shape[0] - 1 else "lie"
        yield _of(row, name, f"{lost}, {verb} beyond the shard's end", num_slices)


def _slice_bytes(row: LatentRow) -> int:
    return math.prod(row.shape[1:]) * np.dtype(row.dtype).itemsize


def _num_bytes(row: LatentRow) -> int:
    return row.shape[0] * _slice_bytes(row)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of ascending numbers without a gap."""
    for _, stretch in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in stretch]
        yield members[0], members[-1]


def _named(first: int, last: int) -> str:
    return f"slice {first}" if first == last else f"slices {first} to {last}"


def _of(row: LatentRow, name: str, problem: str, index: int = 0) -> Damage:
    return Damage(
        path=name,
        clip=row.clip,
        field=row.field,
        offset=row.offset + index * _slice_bytes(row),
        problem=f"{row.field} of clip {row.clip}, {problem}",
    )


def _lost(name: str, rows: Sequence[LatentRow], cause: str) -> Iterator[Damage]:
    for row in rows:
        yield _of(row, name, f"is lost: {cause}")


def _overlapping(name: str, rows: Sequence[LatentRow]) -> Iterator[Damage]:
    """Tensors that begin inside the one before them; rows made again may share theirs."""
    for before, row in pairwise(rows):
        is_same = (before.clip, before.field) == (row.clip, row.field)
        if row.offset < before.offset + _num_bytes(before) and not is_same:
            yield _of(row, name, f"begins inside {before.field} of clip {before.clip}")


def _rows_in(tables: Sequence[pa.Table], shard: str) -> list[LatentRow]:
    rows = pa.concat_tables([table.filter(pc.equal(table["shard"], shard)) for table in tables])
    return sorted(
        map(latent_row, rows.to_pylist()), key=lambda row: (row.offset, row.clip, row.field)
    )
