"""Keyed permutations of the numbers below a size: any place is found at once, nothing is stored."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 8
"""Of the Feistel network. Four make a pseudorandom permutation of a pseudorandom function (Luby and
Rackoff, 1988); the round function here is only a good mixer, so there are twice as many."""
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
"""Of MurmurHash3's 64-bit finalizer."""
_SHIFT = np.uint64(33)


def round_keys(name: str) -> NDArray[np.uint64]:
    """The keys (round,) of the permutation of that name."""
    digest = hashlib.shake_256(name.encode()).digest(8 * _NUM_ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permuted(
    places: NDArray[np.int64], *, size: int, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """What a permutation of [0, size) has at some places.

    Args:
        places: In [0, size).
        size: At least 1, and below 2**62.
        keys: Of one permutation (round, 1), or of each place's own (round, place).
    """
    half_bits = max(1, (size - 1).bit_length() + 1 >> 1)
    is_one = keys.shape[1] == 1
    found = _network(places.astype(np.uint64), half_bits, keys)
    # The network permutes a power of four. What it takes out of range goes in again: that ends,
    # as the cycle it walks leads back to a place that is in range.
    while len(outside := np.flatnonzero(found >= np.uint64(size))):
        found[outside] = _network(found[outside], half_bits, keys if is_one else keys[:, outside])
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
