"""Rewriting shards without the tensors that have left, so that their bytes can be removed.

What lives is copied bit by bit into new shards, and a commit says that it lies there now. Refs
that name the same latents at an earlier commit move along; the old shards are then garbage. A ref
that names what has left pins the shards in which that lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.checkpoint import schema_of
from latents.cache.drivers import collecting
from latents.cache.layout import CacheLayout
from latents.cache.liveness import living
from latents.cache.log import CommitLog
from latents.cache.reach import History, read_history
from latents.cache.refs import Ref, move_ref
from latents.cache.rows import LatentRow, RowKind, TombstoneRow, latent_row, rows_to_table
from latents.cache.shard_copy import copy_shard
from latents.cache.snapshot import load_snapshot
from latents.errors import CacheError
from latents.store.kinds import StoreName, store_of
from latents.store.protocol import ShardWriter

SHARDS_PER_COMMIT = 64
"""What a run that is killed does again at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadShare:
    """A shard in which some tensors live at the head and others do not."""

    shard: str
    num_living: int
    num_dead: int
    living_bytes: int
    dead_bytes: int

    @property
    def dead_fraction(self) -> float:
        """Part of its bytes that has left."""
        return self.dead_bytes / (self.dead_bytes + self.living_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewritten:
    """What `rewrite_shards` did."""

    shards: tuple[DeadShare, ...]
    """Those whose living tensors lie elsewhere now."""
    moved_refs: tuple[str, ...]
    """They named the same latents at an earlier commit, and name the latest now."""
    pinning_refs: Mapping[str, int]
    """As `pinning_refs` gives them, afterwards."""


def shards_to_rewrite(
    layout: CacheLayout, history: History, *, max_dead_fraction: float
) -> tuple[DeadShare, ...]:
    """Shards of which a larger part has left the head, in order of name; none that a ref pins."""
    pinned: set[str] = set()
    for name in pinning_refs(layout, history):
        pinned |= history.shards(history.reached_by(name))
    found = (one for one in _dead_shares(history) if one.shard not in pinned)
    return tuple(one for one in found if one.dead_fraction > max_dead_fraction)


def pinning_refs(layout: CacheLayout, history: History) -> dict[str, int]:
    """Refs that keep latents which have left the head, by name the number of shards.

    They name other latents than the head does, so that they cannot move there.
    """
    at_head = history.at_head()
    with_dead = history.shards(~at_head)
    counts: dict[str, int] = {}
    for name in history.refs:
        pinned = history.shards(history.reached_by(name)) & with_dead
        if pinned and not _names_the_same(layout, history, name):
            counts[name] = len(pinned)
    return counts


def rewrite_shards(
    layout: CacheLayout,
    *,
    max_dead_fraction: float,
    open_shard: Callable[[StoreName], ShardWriter],
    run: Mapping[str, str],
) -> Rewritten:
    """Copies what lives out of shards of which a larger part has left.

    Args:
        layout: The cache.
        max_dead_fraction: Of a shard's bytes; 0 rewrites every shard in which something has left.
        open_shard: Starts a shard of a store; each is copied into one of its own kind.
        run: Recorded with the commits.

    Raises:
        CacheError: Drivers are at work, or the cache cannot be written.
        DamagedError: A tensor that lives is damaged; what was committed before stays.
    """
    with collecting(layout) as marks:
        if drivers := marks.of("driver"):
            raise CacheError(
                f"{layout.url}: no shard can be rewritten while drivers are at work "
                f"({'; '.join(map(str, drivers))}); run this again when they are done"
            )
        history = read_history(layout)
        shards = shards_to_rewrite(layout, history, max_dead_fraction=max_dead_fraction)
        log = CommitLog(layout, seen=history.snapshot.commit)
        rows = _living_rows(history, [one.shard for one in shards])
        for start in range(0, len(shards), SHARDS_PER_COMMIT):
            names = pa.array([one.shard for one in shards[start : start + SHARDS_PER_COMMIT]])
            records = rows.filter(pc.is_in(rows["shard"], value_set=names)).to_pylist()
            _move(layout, log, list(map(latent_row, records)), open_shard=open_shard, run=run)
        moved_refs = _move_refs(layout)
        return Rewritten(
            shards=shards,
            moved_refs=moved_refs,
            pinning_refs=pinning_refs(layout, read_history(layout)),
        )


def _dead_shares(history: History) -> list[DeadShare]:
    """The shards in which something lives and something does not, in order of name."""
    rows = history.rows.select(["shard", "offset", "num_bytes"])
    rows = rows.append_column("lives", pa.array(history.at_head()))
    # A tensor that left and was made again may have several rows for one place.
    tensors = rows.group_by(["shard", "offset"], use_threads=False).aggregate(
        [("num_bytes", "max"), ("lives", "any")]
    )
    lives, num_bytes = tensors["lives_any"], tensors["num_bytes_max"]
    columns = {
        "num_living": lives.cast(pa.int64()),
        "num_dead": pc.invert(lives).cast(pa.int64()),
        "living_bytes": pc.if_else(lives, num_bytes, 0),
        "dead_bytes": pc.if_else(lives, 0, num_bytes),
    }
    sums = pa.table({"shard": tensors["shard"].cast(pa.string()), **columns})
    sums = sums.group_by("shard", use_threads=False).aggregate([(name, "sum") for name in columns])
    found = (
        DeadShare(shard=row["shard"], **{name: row[f"{name}_sum"] for name in columns})
        for row in sums.sort_by("shard").to_pylist()
    )
    return [one for one in found if one.num_living and one.num_dead]


def _living_rows(history: History, shards: Sequence[str]) -> pa.Table:
    """Whole rows of the latents that live in some shards, in the order of their bytes."""
    wanted = pa.array(shards, pa.string())
    parts = [schema_of("latents").empty_table()]
    for file in history.snapshot.latents_files:
        rows = file.read()
        parts.append(rows.filter(pc.is_in(rows["shard"], value_set=wanted)))
    found = living(pa.concat_tables(parts), history.snapshot.tombstones)
    return found.sort_by([("shard", "ascending"), ("offset", "ascending")]).drop_columns("commit")


def _move(
    layout: CacheLayout,
    log: CommitLog,
    rows: Sequence[LatentRow],
    *,
    open_shard: Callable[[StoreName], ShardWriter],
    run: Mapping[str, str],
) -> None:
    """Copies all that lives in some shards, each into one of its own, and commits it."""
    moved: list[LatentRow] = []
    ends: list[TombstoneRow] = []
    for shard, of_shard in groupby(rows, key=lambda row: row.shard):
        moved.extend(copy_shard(layout, list(of_shard), open_shard(store_of(shard))))
        ends.append(TombstoneRow(reason="moved", uri=None, source=None, clip=None, shard=shard))
    tables: dict[RowKind, pa.Table] = {
        "latents": rows_to_table("latents", moved),
        "tombstones": rows_to_table("tombstones", ends),
    }
    log.append(tables, run)


def _move_refs(layout: CacheLayout) -> tuple[str, ...]:
    """Moves refs to the head that name the same there, where the head needs fewer shards."""
    history = read_history(layout)
    head = history.snapshot.commit
    at_head = history.shards(history.at_head())
    moved: list[str] = []
    for name, ref in history.refs.items():
        needs_more = not history.shards(history.reached_by(name)) <= at_head
        if needs_more and _names_the_same(layout, history, name):
            _move_ref(layout, name, ref, Ref(commit=head, recipes=ref.recipes))
            moved.append(name)
    return tuple(moved)


def _move_ref(layout: CacheLayout, name: str, expected: Ref, wanted: Ref) -> None:
    move_ref(layout, name, lambda found: wanted if found == expected else None)


def _names_the_same(layout: CacheLayout, history: History, name: str) -> bool:
    """Whether a ref would name the very same latents at the head."""
    recipes = history.recipes[name]
    there = history.reached_by(name)
    at_head = history.at_head() & history.made_by(recipes)
    if np.count_nonzero(there) != np.count_nonzero(at_head):
        return False
    if np.array_equal(there, at_head):
        return True
    before, now = load_snapshot(layout, history.refs[name].commit), history.snapshot
    columns = ["clip", "field", "digest"]
    return all(
        before.rows_of(recipe).select(columns).equals(now.rows_of(recipe).select(columns))
        for recipe in sorted(recipes)
    )
