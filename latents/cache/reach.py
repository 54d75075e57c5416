"""What refs and the head reach of all the latents that were ever committed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.checkpoint import INDEX_SCHEMA, index_of
from latents.cache.layout import CacheLayout
from latents.cache.liveness import living
from latents.cache.refs import Ref, read_recipe, read_ref, ref_names
from latents.cache.rows import DTYPES
from latents.cache.snapshot import Snapshot, load_snapshot

Mask = NDArray[np.bool_]
"""For each row of a history, whether it is meant."""

_ITEM_BYTES = np.array([np.dtype(name).itemsize for name in DTYPES])
_PLACE_SCHEMA = pa.schema(
    [*INDEX_SCHEMA, pa.field("offset", pa.int64()), pa.field("num_bytes", pa.int64())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All latents rows that were ever committed, alive or not."""

    snapshot: Snapshot
    """The head's."""
    rows: pa.Table
    """The index's columns, ``offset`` and ``num_bytes`` of the tensor, and ``number``, the row's
    place in this table."""
    refs: Mapping[str, Ref]
    recipes: Mapping[str, frozenset[str]]
    """By ref, its recipes and all that they were made from."""

    def living(self, commit: int) -> Mask:
        """Rows that were alive at a commit."""
        rows, tombstones = (
            table.filter(pc.less_equal(table["commit"], commit))
            for table in (self.rows, self.snapshot.tombstones)
        )
        is_alive = np.zeros(self.rows.num_rows, np.bool_)
        is_alive[living(rows, tombstones)["number"].to_numpy()] = True
        return is_alive

    def at_head(self) -> Mask:
        """Rows that are alive."""
        return self.living(self.snapshot.commit)

    def reached_by(self, ref: str) -> Mask:
        """Rows of a ref's recipes, and of what they were made from, alive at its commit."""
        return self.living(self.refs[ref].commit) & self.made_by(self.recipes[ref])

    def reached_by_refs(self) -> Mask:
        """Rows that some ref reaches."""
        reached = np.zeros(self.rows.num_rows, np.bool_)
        for name in self.refs:
            reached |= self.reached_by(name)
        return reached

    def made_by(self, recipes: Collection[str]) -> Mask:
        """Rows of some recipes."""
        wanted = pa.array(sorted(recipes), pa.string())
        is_made: Mask = pc.is_in(self.rows["recipe"], value_set=wanted).to_numpy()
        return is_made

    def shards(self, mask: Mask) -> set[str]:
        """Names of the shards in which rows lie."""
        return self.values("shard", mask)

    def values(self, column: str, mask: Mask) -> set[str]:
        """What rows have in a column of text."""
        found = self.rows[column].filter(pa.array(mask))
        return set(pc.unique(found.cast(pa.string())).to_pylist())


def read_history(layout: CacheLayout) -> History:
    """Reads the whole log and all refs.

    Raises:
        DamagedError: A commit, a file of rows, a ref or its recipe is missing or damaged.
    """
    # Before the log: none of these names a commit that is later than the snapshot.
    found = {name: read_ref(layout, name) for name in ref_names(layout)}
    snapshot = load_snapshot(layout)
    parts = [_PLACE_SCHEMA.empty_table(), *(_places(f.read()) for f in snapshot.latents_files)]
    rows = pa.concat_tables(parts).unify_dictionaries()
    refs = {name: ref for name, ref in found.items() if ref is not None}
    return History(
        snapshot=snapshot,
        rows=rows.append_column("number", pa.array(np.arange(rows.num_rows))),
        refs=refs,
        recipes={name: with_ancestors(layout, ref.recipes.values()) for name, ref in refs.items()},
    )


def with_ancestors(layout: CacheLayout, recipes: Iterable[str]) -> frozenset[str]:
    """Digests of recipes and of all that they were made from; `DamagedError` where one is gone."""
    return frozenset(
        ancestor.digest
        for digest in sorted(recipes)
        for ancestor in read_recipe(layout, digest).with_ancestors()
    )


def kept_recipes(layout: CacheLayout, history: History) -> frozenset[str]:
    """Recipes whose latents are in use at the head.

    Those that a ref reaches, and those that something was made by since ``refs/current`` moved
    last: work that was not completed goes on from there. Without that ref all are.
    """
    alive = history.at_head()
    current = history.refs.get("current")
    if current is None:
        return with_ancestors(layout, history.values("recipe", alive))
    is_later = history.rows["commit"].to_numpy() > current.commit
    in_the_works = history.values("recipe", alive & is_later)
    return with_ancestors(layout, in_the_works).union(*history.recipes.values())


def _places(latents: pa.Table) -> pa.Table:
    table = index_of(latents.combine_chunks())
    table = table.append_column("offset", latents["offset"])
    return table.append_column("num_bytes", pa.array(_num_bytes(latents)))


def _num_bytes(latents: pa.Table) -> NDArray[np.int64]:
    """Bytes of each row's tensor."""
    if not latents.num_rows:
        return np.empty(0, np.int64)
    shapes = latents["shape"].combine_chunks()
    num_axes = pc.list_value_length(shapes).to_numpy()
    first_axis = np.cumsum(num_axes) - num_axes
    num_items = np.multiply.reduceat(pc.list_flatten(shapes).to_numpy(), first_axis)
    kinds = pc.index_in(latents["dtype"], value_set=pa.array(DTYPES)).to_numpy()
    num_bytes: NDArray[np.int64] = num_items * _ITEM_BYTES[kinds]
    return num_bytes
