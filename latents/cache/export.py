"""A snapshot as a cache of its own, bit by bit, with shards of either store.

Each shard of the snapshot becomes one shard of the new cache, with those of its tensors that the
ref names, in the same order. The new cache gets its ``current`` when all is there; until then the
same export goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.commit import read_commit
from latents.cache.drivers import driving
from latents.cache.inspect import summarise_level
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, read_recipe, require_ref, write_recipes, write_ref
from latents.cache.rows import RowKind, latent_row, row_schema, rows_to_table
from latents.cache.shard_copy import copy_shard
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.errors import CacheError
from latents.fields import LEVELS, Level
from latents.recipe import canonical_json, sha256_hex
from latents.store.kinds import StoreName
from latents.store.protocol import ShardWriter

IDENTITY = "export"
"""Where a commit's run says which snapshot it is an export of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A cache that `export_cache` made."""

    url: str
    commit: int
    """What its ``current`` names."""
    num_clips: int
    num_shards: int
    num_copied: int
    """Shards written by this run; the others were there from one before."""
    levels: Mapping[Level, str]
    """Content digest of each level, which is the snapshot's."""


def export_cache(
    source: CacheLayout,
    out: str | Path,
    *,
    store: StoreName,
    open_shard: Callable[[CacheLayout], ShardWriter],
    run: Mapping[str, str],
    ref: str = "current",
    level: Level | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Copies a snapshot into a new cache: recipes, latents, sources and annotations.

    What was given up or taken down stays behind. A run that was killed is gone on with by calling
    this again; at most one shard is then copied again.

    Args:
        source: The cache.
        out: Folder or URL of the new one.
        store: Of its shards.
        open_shard: Starts a shard of that store.
        run: Recorded with the commits.
        ref: Which snapshot.
        level: Only this one; None: all that the ref names.
        on_shard: Told after each shard how many are there and how many there will be.

    Raises:
        CacheError: There is no such ref or level, ``out`` holds something else, or cannot be
            written.
        DamagedError: The cache's bytes are not what was written.
    """
    pinned = require_ref(source, ref)
    recipes = _recipes(source, pinned, ref=ref, level=level)
    snapshot = load_snapshot(source, pinned.commit)
    rows = _rows_by_shard(snapshot, recipes)
    if not rows.num_rows:
        raise CacheError(f"{source.url}: ref {ref!r} names no latents; there is nothing to export")
    identity = _identity(source, pinned.commit, recipes, store)
    target = create_cache(out)
    with driving(target, purpose="export"):
        _require_same_export(target, identity)
        write_recipes(target, (read_recipe(source, digest) for digest in recipes.values()))
        copying = _Copying(source, target, open_shard, {**run, IDENTITY: identity})
        shards = copying.latents(rows, on_shard=on_shard)
        copying.sources(snapshot)
        commit = CommitLog(target).head()
        write_ref(target, "current", Ref(commit=commit, recipes=recipes))
    return Exported(
        url=target.url,
        commit=commit,
        num_clips=len(pc.unique(rows["clip"])),
        num_shards=shards.num_all,
        num_copied=shards.num_copied,
        levels=_content_digests(target, recipes),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shards:
    num_all: int
    num_copied: int


class _Copying:
    """One run's way from a snapshot into a new cache."""

    def __init__(
        self,
        source: CacheLayout,
        target: CacheLayout,
        open_shard: Callable[[CacheLayout], ShardWriter],
        run: Mapping[str, str],
    ) -> None:
        self._source, self._target = source, target
        self._open_shard, self._run = open_shard, run
        self._there = load_snapshot(target)
        self._log = CommitLog(target, seen=self._there.commit)

    def latents(self, rows: pa.Table, *, on_shard: Callable[[int, int], None]) -> _Shards:
        """Copies the tensors of rows, which are in order of shard, but for those there already."""
        num_all = len(pc.unique(rows["shard"]))
        left = list(_by_shard(self._not_there(rows)))
        for done, of_shard in enumerate(left, start=num_all - len(left) + 1):
            writer = self._open_shard(self._target)
            records = of_shard.to_pylist()
            moved = copy_shard(self._source, list(map(latent_row, records)), writer)
            self._log.append({"latents": rows_to_table("latents", moved)}, self._run)
            on_shard(done, num_all)
        return _Shards(num_all=num_all, num_copied=len(left))

    def sources(self, snapshot: Snapshot) -> None:
        """Commits sources and annotations, which come after all clips, if they are not there."""
        if self._there.source_history.num_rows or self._there.annotations.num_rows:
            return
        found: dict[RowKind, pa.Table] = {
            "sources": snapshot.sources,
            "annotations": snapshot.annotations,
        }
        tables = {kind: rows.select(row_schema(kind).names) for kind, rows in found.items()}
        self._log.append(tables, self._run)

    def _not_there(self, rows: pa.Table) -> pa.Table:
        index = self._there.index
        there = set(zip(index["recipe"].to_pylist(), index["clip"].to_pylist(), strict=True))
        pairs = zip(rows["recipe"].to_pylist(), rows["clip"].to_pylist(), strict=True)
        return rows.filter(pa.array([pair not in there for pair in pairs], pa.bool_()))


def _recipes(source: CacheLayout, pinned: Ref, *, ref: str, level: Level | None) -> dict[str, str]:
    """Of the fields to export."""
    if level is None:
        return dict(pinned.recipes)
    absent = [field for field in LEVELS[level] if field not in pinned.recipes]
    if absent:
        raise CacheError(
            f"{source.url}: ref {ref!r} has no {' or '.join(absent)}; it has "
            f"{', '.join(sorted(pinned.recipes)) or 'no fields'}"
        )
    return {field: pinned.recipes[field] for field in LEVELS[level]}


def _rows_by_shard(snapshot: Snapshot, recipes: Mapping[str, str]) -> pa.Table:
    """The latents rows of some recipes, in the order of their bytes."""
    parts = [snapshot.rows_of(recipe) for recipe in recipes.values()]
    rows = pa.concat_tables([row_schema("latents").empty_table(), *parts])
    return rows.sort_by([("shard", "ascending"), ("offset", "ascending")])


def _by_shard(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows of each shard, of rows that are in order of shard."""
    shards = rows["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    for first, stop in pairwise(bounds):
        if first < stop:
            yield rows.slice(first, stop - first)


def _identity(
    source: CacheLayout, commit: int, recipes: Mapping[str, str], store: StoreName
) -> str:
    """The same for the same latents of the same snapshot in the same store."""
    value: dict[str, Any] = {
        "commit": read_commit(source, commit).digest if commit >= 0 else None,
        "recipes": dict(recipes),
        "store": store,
    }
    return sha256_hex(canonical_json(value))


def _require_same_export(target: CacheLayout, identity: str) -> None:
    """Refuses a cache that holds anything but what this export brought before."""
    log = CommitLog(target)
    for commit in log.commits(0, log.head()):
        if commit.run.get(IDENTITY) != identity:
            raise CacheError(
                f"{target.url} holds a cache already, and not this export begun before (its "
                f"commit {commit.number} is by {commit.run.get('command', 'another run')!r}); "
                "name an empty or a new folder"
            )


def _content_digests(target: CacheLayout, recipes: Mapping[str, str]) -> dict[Level, str]:
    return {
        level: summarise_level(open_cache(target.url, level=level)).content_digest
        for level, fields in LEVELS.items()
        if set(fields) <= recipes.keys()
    }
