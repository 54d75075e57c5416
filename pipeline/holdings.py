"""Which fields a snapshot holds, by source and segment: the plan's view of millions of rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SEGMENT_BITS = 24
"""A source has fewer than 16 million segments: at 10 s each, five years."""


class Holdings:
    """Fields held of each segment of each source.

    Args:
        index: Of a snapshot.
        recipes: Field to the digest of the recipe that counts; rows of others do not.
    """

    def __init__(self, index: pa.Table, recipes: Mapping[str, str]) -> None:
        self.fields = tuple(recipes)
        rows = index.filter(
            pc.is_in(index["recipe"], value_set=pa.array(list(recipes.values()), pa.string()))
        )
        source, self._digests = _codes(rows["source"])
        recipe, digests = _codes(rows["recipe"])
        bit = {digest: 1 << position for position, digest in enumerate(recipes.values())}
        # The dictionary of a filtered column still has what was filtered out.
        bit_of = [bit.get(digest, 0) for digest in digests.to_pylist()]
        bits = np.array(bit_of, np.uint16)[recipe] if len(recipe) else np.empty(0, np.uint16)
        keys = (source.astype(np.int64) << _SEGMENT_BITS) | rows["segment"].to_numpy()
        order = np.argsort(keys, kind="stable")
        self._keys, starts = np.unique(keys[order], return_index=True)
        self._held: NDArray[np.uint16] = (
            np.bitwise_or.reduceat(bits[order], starts) if len(starts) else bits
        )

    def positions(self, digests: pa.Array) -> NDArray[np.int64]:
        """Where sources stand in `num_full`; the last place, which is 0, for those not there."""
        found = pc.index_in(digests, value_set=self._digests)
        positions: NDArray[np.int64] = (
            pc.fill_null(found, len(self._digests)).to_numpy(False).astype(np.int64)
        )
        return positions

    def num_full(self) -> NDArray[np.int64]:
        """Segments of each source of which every field is held."""
        full = self._held == (1 << len(self.fields)) - 1
        of_source = self._keys[full] >> _SEGMENT_BITS
        return np.bincount(of_source, minlength=len(self._digests) + 1)

    def segments(self, position: int) -> dict[int, frozenset[str]]:
        """Fields held of each segment of the source at a position."""
        first, last = np.searchsorted(
            self._keys, [position << _SEGMENT_BITS, (position + 1) << _SEGMENT_BITS]
        )
        numbers = self._keys[first:last] & ((1 << _SEGMENT_BITS) - 1)
        held = self._held[first:last].tolist()
        return {
            number: frozenset(f for bit, f in enumerate(self.fields) if mask >> bit & 1)
            for number, mask in zip(numbers.tolist(), held, strict=True)
        }


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """A dictionary-encoded column as codes and the values that they stand for."""
    if not column.num_chunks:
        return np.empty(0, np.int32), pa.array([], pa.string())
    whole = column.unify_dictionaries().combine_chunks()
    codes: NDArray[np.int32] = whole.indices.to_numpy()
    return codes, whole.dictionary
