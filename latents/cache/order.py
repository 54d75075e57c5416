"""The order in which training sees windows: a pure function of a seed and a position."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 8
"""Of the Feistel network. Four make a pseudorandom permutation of a pseudorandom function (Luby and
Rackoff, 1988); the round function here is only a good mixer, so there are twice as many."""
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
"""Of MurmurHash3's 64-bit finalizer."""
_SHIFT = np.uint64(33)
_BLOCK = 4096
"""Places of an epoch that are computed together: those of a batch alone take ten times as long."""


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

    def at(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and windows of positions [first, first + count), position 0 being the start."""
        epochs, places = np.divmod(
            np.arange(first, first + count, dtype=np.int64), self.num_windows
        )
        windows = np.empty_like(places)
        done = 0
        while done < count:
            block, skipped = divmod(int(places[done]), _BLOCK)
            part = _block(self, int(epochs[done]), block)[skipped : skipped + count - done]
            windows[done : done + len(part)] = part
            done += len(part)
        return epochs, windows


@lru_cache(maxsize=16)
def _block(order: TrainingOrder, epoch: int, block: int) -> NDArray[np.int64]:
    """The windows at some places of an epoch, kept for the batches that follow."""
    stop = min((block + 1) * _BLOCK, order.num_windows)
    windows = _permuted(order, epoch, np.arange(block * _BLOCK, stop))
    windows.flags.writeable = False
    return windows


def _permuted(order: TrainingOrder, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    half_bits = max(1, (order.num_windows - 1).bit_length() + 1 >> 1)
    keys = _round_keys(order.seed, epoch)
    found = places.astype(np.uint64)
    # The network permutes a power of four. What it takes out of range goes in again: that ends,
    # as the cycle it walks leads back to a place that is in range.
    outside = np.ones(len(found), np.bool_)
    while outside.any():
        found[outside] = _network(found[outside], half_bits, keys)
        outside = found >= np.uint64(order.num_windows)
    return found.astype(np.int64)


def _network(
    values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of [0, 4 ** half_bits)."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for multiplier in _MULTIPLIERS:
        values = (values ^ (values >> _SHIFT)) * multiplier
    return values ^ (values >> _SHIFT)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    digest = hashlib.shake_256(f"order {seed} {epoch}".encode()).digest(8 * _NUM_ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
