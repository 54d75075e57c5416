"""The order in which training sees windows: a pure function of a seed and a position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from latents.cache.permutation import permuted, round_keys

BLOCK_POSITIONS = 16_384
"""Of an epoch that are computed together: those of a batch alone take ten times as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOrder:
    """Every window once in each epoch, in an order that is keyed by (seed, epoch).

    The epochs follow each other without a gap: a batch that an epoch cannot fill goes on with the
    next. Nothing is stored, so any position is found at once, however many windows there are.
    """

    num_windows: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_windows < 2**62:
            raise ValueError(f"num_windows is {self.num_windows}; it must be between 1 and 2**62")

    @property
    def epoch_windows(self) -> int:
        """Positions of an epoch."""
        return self.num_windows

    def identity(self) -> dict[str, int]:
        """What tells this order from others."""
        return {"seed": self.seed, "num_windows": self.num_windows}

    def at(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and windows of positions [first, first + count), position 0 being the start."""
        epochs, windows = np.empty((2, count), np.int64)
        for part in block_parts(first, count, epoch_windows=self.num_windows):
            epochs[part.positions] = part.epoch
            windows[part.positions] = _block(self, part.epoch, part.block)[part.places]
        return epochs, windows


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPart:
    """Positions that lie in one block of an epoch."""

    epoch: int
    block: int
    places: slice
    """In the block."""
    positions: slice
    """Counted from the first one asked for."""


def block_parts(first: int, count: int, *, epoch_windows: int) -> Iterator[BlockPart]:
    """Positions [first, first + count) by the blocks of `BLOCK_POSITIONS` that they lie in.

    Args:
        first: Position, 0 being the start.
        count: How many.
        epoch_windows: Positions of an epoch; its last block is what is left.
    """
    done = 0
    while done < count:
        epoch, place = divmod(first + done, epoch_windows)
        block, skipped = divmod(place, BLOCK_POSITIONS)
        size = min(count - done, BLOCK_POSITIONS - skipped, epoch_windows - place)
        yield BlockPart(
            epoch=epoch,
            block=block,
            places=slice(skipped, skipped + size),
            positions=slice(done, done + size),
        )
        done += size


@lru_cache(maxsize=16)
def _block(order: TrainingOrder, epoch: int, block: int) -> NDArray[np.int64]:
    """The windows at some places of an epoch, kept for the batches that follow."""
    stop = min((block + 1) * BLOCK_POSITIONS, order.num_windows)
    places = np.arange(block * BLOCK_POSITIONS, stop)
    windows = permuted(places, size=order.num_windows, keys=_keys(order.seed, epoch))
    windows.flags.writeable = False
    return windows


@lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    return round_keys(f"order {seed} {epoch}")[:, None]
