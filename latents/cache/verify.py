"""Verification: walk the chain, hash what it names, and say exactly what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import Commit, CommitLog, check_link
from latents.cache.reader import read_tensor
from latents.cache.refs import read_recipe, read_ref
from latents.cache.rows import LatentRow, empty_table, latent_row
from latents.errors import DamagedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One fault found."""

    path: str
    """The file, relative to the cache."""
    clip: str | None
    field: str | None
    offset: int
    """Byte within the file; 0 where the whole file is meant."""
    problem: str


def verify_cache(
    layout: CacheLayout, *, on_shard: Callable[[int, int], None] = lambda done, total: None
) -> list[Damage]:
    """Everything that is not as the log says.

    Args:
        layout: The cache.
        on_shard: Called with (shards checked, shards in all).

    Raises:
        CacheError: There is no cache, or one of another format.
    """
    log = CommitLog(layout)
    damaged: list[Damage] = []
    try:
        find_cache(layout.root)
    except DamagedError as error:
        damaged.append(_whole_file(error))
    tables = [empty_table("latents")]
    for commit in _walk_chain(log, damaged):
        tables.extend(_latents_tables(log, commit, damaged))
    latents = pa.concat_tables(tables)
    damaged.extend(_verify_recipes(layout, set(pc.unique(latents["recipe"]).to_pylist())))
    damaged.extend(_verify_refs(layout, log))
    shards = sorted(pc.unique(latents["shard"]).to_pylist())
    for index, shard in enumerate(shards, start=1):
        damaged.extend(verify_shard(layout, shard, latents))
        on_shard(index, len(shards))
    return list(dict.fromkeys(damaged))


def verify_shard(layout: CacheLayout, shard: str, latents: pa.Table) -> Iterator[Damage]:
    """Hashes a shard; where that fails, names the rows and offsets that are damaged.

    Args:
        layout: The cache.
        shard: File name below ``shards/``.
        latents: Latents rows; those of other shards are passed over.
    """
    path, name = layout.shards / shard, f"shards/{shard}"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        for row in _rows_in(latents, shard):
            yield Damage(
                path=name,
                clip=row.clip,
                field=row.field,
                offset=row.offset,
                problem=f"the shard cannot be read ({error.strerror})",
            )
        return
    if digest == path.stem:
        return
    damaged_rows = [
        damage for row in _rows_in(latents, shard) for damage in _verify_tensor(layout, row)
    ]
    yield from damaged_rows
    if not damaged_rows:
        yield Damage(
            path=name,
            clip=None,
            field=None,
            offset=0,
            problem="the shard does not hash to its name, though all its tensors are intact",
        )


def _rows_in(latents: pa.Table, shard: str) -> list[LatentRow]:
    records = latents.filter(pc.equal(latents["shard"], shard)).to_pylist()
    return sorted(map(latent_row, records), key=lambda row: row.offset)


def _verify_tensor(layout: CacheLayout, row: LatentRow) -> Iterator[Damage]:
    for index in range(row.shape[0]):
        try:
            read_tensor(layout, row, index, index + 1)
        except DamagedError as error:
            yield Damage(
                path=error.path,
                clip=row.clip,
                field=row.field,
                offset=error.offset,
                problem=error.problem,
            )


def _walk_chain(log: CommitLog, damaged: list[Damage]) -> Iterator[Commit]:
    """Every readable commit; notes those that are missing, damaged or not linked to the last."""
    before: Commit | None = None
    wanted = 0
    for number in log.numbers():
        commit: Commit | None = None
        try:
            commit = log.read(number)
            if number > wanted:
                log.read(wanted)  # raises; the first of a gap stands for all of it
            if before is not None or number == 0:
                check_link(before, commit)
        except DamagedError as error:
            damaged.append(_whole_file(error))
        before, wanted = commit, number + 1
        if commit is not None:
            yield commit


def _latents_tables(log: CommitLog, commit: Commit, damaged: list[Damage]) -> Iterator[pa.Table]:
    for file in commit.files:
        try:
            table = log.read_rows(file)
        except DamagedError as error:
            damaged.append(_whole_file(error))
            continue
        if file.kind == "latents":
            yield table


def _verify_recipes(layout: CacheLayout, named: set[str]) -> Iterator[Damage]:
    """Those that rows name, and those that are there."""
    stored = {path.stem for path in (layout.root / "recipes").glob("*.json")}
    for digest in sorted(named | stored):
        try:
            read_recipe(layout, digest)
        except DamagedError as error:
            yield _whole_file(error)


def _verify_refs(layout: CacheLayout, log: CommitLog) -> Iterator[Damage]:
    head = log.head()
    for path in sorted((layout.root / "refs").glob("*.json")):
        try:
            ref = read_ref(layout, path.stem)
            if ref is not None and ref.commit > head:
                raise DamagedError(
                    f"refs/{path.name}", 0, f"names commit {ref.commit}; the log ends at {head}"
                )
            for digest in ref.recipes.values() if ref is not None else ():
                read_recipe(layout, digest)
        except DamagedError as error:
            yield _whole_file(error)


def _whole_file(error: DamagedError) -> Damage:
    return Damage(
        path=error.path, clip=None, field=None, offset=error.offset, problem=error.problem
    )
