"""Which rows count: the latest of each, less those that a later commit ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_NEVER = np.iinfo(np.int64).min


def living(rows: pa.Table, tombstones: pa.Table) -> pa.Table:
    """Latents rows that no tombstone of a later commit ended.

    Args:
        rows: With the columns ``source``, ``clip``, ``recipe``, ``shard`` and ``commit``.
        tombstones: With ``commit``.
    """
    enders = {key: _enders(tombstones, key) for key in ("source", "clip", "recipe", "shard")}
    # Beside a clip, the source only says whose clip it is.
    enders["source"] = enders["source"].filter(pc.is_null(enders["source"]["clip"]))
    ended = [_last_ended(rows[key], of_key, key) for key, of_key in enders.items() if len(of_key)]
    if not ended:
        return rows
    return rows.filter(pa.array(rows["commit"].to_numpy() >= np.maximum.reduce(ended)))


def living_sources(rows: pa.Table, tombstones: pa.Table) -> pa.Table:
    """The latest row of each URI that no tombstone of a later commit ended, in order of URI."""
    # The sort is stable, so the last row of a URI is its latest; a hash table takes more memory.
    latest = _last_of_each_run(rows.sort_by("uri"), "uri")
    enders = _enders(tombstones, "uri")
    if not enders.num_rows:
        return latest
    ended = _last_ended(latest["uri"], enders, "uri")
    return latest.filter(pa.array(latest["commit"].to_numpy() >= ended))


def last_of_each(rows: pa.Table, key: str) -> pa.Table:
    """The last row of each value of a column, in the order of these rows."""
    position = pa.array(np.arange(rows.num_rows))
    keyed = pa.table({"key": rows[key], "position": position})
    last = keyed.group_by("key", use_threads=False).aggregate([("position", "max")])
    if last.num_rows == rows.num_rows:
        return rows
    return rows.take(pa.array(np.sort(last["position_max"].to_numpy())))


def _last_of_each_run(rows: pa.Table, key: str) -> pa.Table:
    """The last of neighbouring rows with one value of a column."""
    if rows.num_rows < 2:
        return rows
    is_last = pc.not_equal(rows[key].slice(0, rows.num_rows - 1), rows[key].slice(1))
    if pc.all(is_last).as_py():
        return rows
    return rows.filter(pa.chunked_array([*is_last.chunks, pa.array([True])]))


def _enders(tombstones: pa.Table, column: str) -> pa.Table:
    """The tombstones that end something of a column."""
    ends = pc.not_equal(tombstones["reason"], "readmitted")
    return tombstones.filter(pc.and_(ends, pc.is_valid(tombstones[column])))


def _last_ended(column: pa.ChunkedArray, enders: pa.Table, key: str) -> NDArray[np.int64]:
    """For each value of a column, the last commit that ended it."""
    grouped = enders.group_by(key, use_threads=False).aggregate([("commit", "max")])
    keys = grouped[key].combine_chunks()
    commits = np.append(grouped["commit_max"].to_numpy(), _NEVER)
    found = [_positions(chunk, keys) for chunk in column.chunks]
    positions: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *found])
    return commits[positions]


def _positions(values: Any, keys: pa.Array) -> NDArray[np.int64]:
    """Where each value stands among keys, -1 for one that does not."""
    is_coded = pa.types.is_dictionary(values.type)
    positions = pc.index_in(values.dictionary if is_coded else values, value_set=keys)
    if is_coded:
        positions = positions.take(values.indices)
    filled: NDArray[np.int64] = pc.fill_null(positions, -1).to_numpy(False).astype(np.int64)
    return filled
