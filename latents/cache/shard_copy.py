"""Copying tensors out of one shard into another, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from latents.cache.layout import CacheLayout
from latents.cache.reader import read_tensor
from latents.cache.rows import LatentRow
from latents.errors import DamagedError
from latents.store.protocol import ShardWriter


def copy_shard(
    layout: CacheLayout, rows: Sequence[LatentRow], writer: ShardWriter
) -> list[LatentRow]:
    """The rows of one shard's tensors, once these lie in another.

    Args:
        layout: Where the tensors are.
        rows: Of them, in the order of their bytes.
        writer: Of the other shard, empty; sealed by this, or discarded.

    Raises:
        CacheError: The other shard cannot be written.
        DamagedError: A tensor is not what was written.
    """
    try:
        for clip, of_clip in groupby(rows, key=lambda row: row.clip):
            writer.add(clip, {row.field: read_tensor(layout, row) for row in of_clip})
        stored = writer.seal()
    finally:
        writer.discard()
    for row in rows:
        if stored[row.clip, row.field].digest != row.digest:
            raise DamagedError(
                layout.shard(row.shard),
                row.offset,
                f"{row.field} of clip {row.clip} does not hash to its digest",
            )
    places = (stored[row.clip, row.field] for row in rows)
    return [
        replace(row, shard=place.shard, offset=place.offset)
        for row, place in zip(rows, places, strict=True)
    ]
