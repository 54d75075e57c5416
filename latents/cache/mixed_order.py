"""The order in which training sees the windows of several sources, some more often than others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from latents.cache.order import BLOCK_POSITIONS, TrainingOrder, block_parts
from latents.cache.permutation import permuted, round_keys

MAX_WEIGHT = 1000.0
"""Of a source; a larger one was most likely meant otherwise."""


def require_weight(weight: float) -> None:
    """Raises `ValueError` where this cannot be the weight of a source."""
    if not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
        raise ValueError(f"the weight is {weight}; it must be above 0 and at most {MAX_WEIGHT:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedOrder:
    """Windows of several sources, those of weight w seen w times as often as those of weight 1.

    Windows are numbered source after source. An epoch has round(weight * windows) positions of
    each source, at least one, in an order that is keyed by (seed, epoch). A source goes through
    its own windows in epochs of its own, which need not end where an epoch does: each has every
    window once, in an order that is keyed by (seed, source, own epoch). So a source of weight 2
    has each window exactly twice an epoch, and one of weight 0.5 half of its windows, rounded to
    whole ones, and none again before all others have come. Those own epochs that one epoch holds
    lie mixed in it.

    Epochs follow each other without a gap. Nothing is stored, so any position is found at once,
    however many windows there are.
    """

    source_windows: tuple[int, ...]
    """Of each source, at least 1."""
    weights: tuple[float, ...]
    """Of each source, above 0 and at most `MAX_WEIGHT`."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.source_windows) != len(self.weights) or not self.weights:
            raise ValueError(
                f"there are {len(self.source_windows)} sources and {len(self.weights)} weights; "
                "wanted one weight for each source, and at least one"
            )
        for weight in self.weights:
            require_weight(weight)
        if min(self.source_windows) < 1:
            raise ValueError(f"source_windows is {self.source_windows}; each must be at least 1")
        if max(self.num_windows, self.epoch_windows) >= 2**62:
            raise ValueError(
                f"there are {self.num_windows} windows, and {self.epoch_windows} in an epoch; "
                "both must be below 2**62"
            )

    @property
    def num_windows(self) -> int:
        """Of all sources together."""
        return sum(self.source_windows)

    @property
    def epoch_windows(self) -> int:
        """Positions of an epoch."""
        return _starts(self)[-1]

    def identity(self) -> dict[str, int]:
        """What tells this order from others: equal ones see the same windows at each position."""
        starts = _starts(self)
        seen = {
            f"source_{number}_windows_an_epoch": stop - start
            for number, (start, stop) in enumerate(pairwise(starts), start=1)
        }
        there = {
            f"source_{number}_windows": windows
            for number, windows in enumerate(self.source_windows, start=1)
        }
        return {"seed": self.seed, "num_windows": self.num_windows} | there | seen

    def at(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Own epochs of their source, and windows, of positions [first, first + count)."""
        epochs, windows = np.empty((2, count), np.int64)
        for part in block_parts(first, count, epoch_windows=self.epoch_windows):
            found = _block(self, part.epoch, part.block)[:, part.places]
            epochs[part.positions], windows[part.positions] = found
        return epochs, windows


@lru_cache(maxsize=16)
def _starts(order: MixedOrder) -> tuple[int, ...]:
    """Of each source among the numbers of an epoch's positions; then their end."""
    parts = zip(order.source_windows, order.weights, strict=True)
    # As fractions: a float cannot count so far.
    counts = (max(1, round(Fraction(weight) * windows)) for windows, weight in parts)
    return tuple(accumulate(counts, initial=0))


@lru_cache(maxsize=16)
def _block(order: MixedOrder, epoch: int, block: int) -> NDArray[np.int64]:
    """Own epochs and windows (2, position) of a block, kept for the batches that follow."""
    start, epoch_windows = block * BLOCK_POSITIONS, order.epoch_windows
    count = min(BLOCK_POSITIONS, epoch_windows - start)
    outer = TrainingOrder(num_windows=epoch_windows, seed=order.seed)
    _, numbers = outer.at(epoch * epoch_windows + start, count)
    starts = _starts(order)
    sources = np.searchsorted(starts, numbers, side="right") - 1
    found = np.empty((2, count), np.int64)
    for source in np.unique(sources).tolist():
        is_its = sources == source
        seen_before = epoch * (starts[source + 1] - starts[source])
        found[:, is_its] = _own(order, source, seen_before + numbers[is_its] - starts[source])
    found.flags.writeable = False
    return found


def _own(order: MixedOrder, source: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Own epochs and windows (2, position) of positions of a source in its own order."""
    size = order.source_windows[source]
    epochs, places = np.divmod(positions, size)
    # Of a block's positions, which are of one epoch: these are not more than its weight and one.
    first, last = int(epochs.min()), int(epochs.max())
    own = [_own_keys(order.seed, source, epoch) for epoch in range(first, last + 1)]
    keys = np.stack(own, axis=1)
    windows = permuted(places, size=size, keys=keys if len(own) == 1 else keys[:, epochs - first])
    return np.stack([epochs, sum(order.source_windows[:source]) + windows])


@lru_cache(maxsize=4096)
def _own_keys(seed: int, source: int, epoch: int) -> NDArray[np.uint64]:
    return round_keys(f"order {seed} source {source} {epoch}")
