"""Which sources leave: those whose bytes no name on record has any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.rows import TombstoneRow
from latents.cache.snapshot import Snapshot
from pipeline.sources import HashedSource


def leaving_sources(
    snapshot: Snapshot, sources: Sequence[HashedSource], others: Set[str], *, prune: bool
) -> tuple[tuple[TombstoneRow, ...], Mapping[str, int]]:
    """Tombstones of what leaves, and by recipe how many clips that is.

    A content leaves when it was on record under some name, and no name has it now. What a run
    that never finished made of a source is not on record, and stays.

    Args:
        snapshot: The head's.
        sources: As they were found now.
        others: URIs that were asked for, but could not be read; they stay as they are.
        prune: Names on record that were not asked for leave.
    """
    now = {source.source.uri: source.digest for source in sources}
    record = snapshot.sources
    asked = pa.array([*now, *others], pa.string())
    kept = record.filter(pc.invert(pc.is_in(record["uri"], value_set=asked)))
    pruned = kept["uri"].to_pylist() if prune else []
    unread = record.filter(pc.is_in(record["uri"], value_set=pa.array(sorted(others), pa.string())))
    held = pa.concat_arrays(
        [
            pa.array(sorted(set(now.values())), pa.string()),
            *unread["digest"].chunks,
            *([] if prune else kept["digest"].chunks),
        ]
    )
    ever = pc.unique(snapshot.source_history["digest"])
    gone = ever.filter(pc.invert(pc.is_in(ever, value_set=held)))
    rows = snapshot.index.filter(pc.is_in(snapshot.index["source"], value_set=gone))
    digests = pc.unique(rows["source"].cast(pa.string())).to_pylist()
    counts = pc.value_counts(rows["recipe"].cast(pa.string())).to_pylist()
    tombstones = (
        *(TombstoneRow(reason="pruned", uri=uri, source=None, clip=None) for uri in sorted(pruned)),
        *(
            TombstoneRow(
                reason="pruned" if prune else "changed", uri=None, source=digest, clip=None
            )
            for digest in sorted(digests)
        ),
    )
    return tombstones, {count["values"]: count["counts"] for count in counts}
