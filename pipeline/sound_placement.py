"""From blocks of sound with stated times to samples laid on one time line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice, pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

SEAM_SECONDS = Fraction(5, 1000)
"""Sound goes on without a seam while its timestamps stay within this of where it is. Containers
round to 1 ms; what is further off for long is a lost packet, a gap, or a clock that drifts."""

LOOK_AHEAD_BLOCKS = 8
"""Blocks, the next one among them, that must all be off to the same side before it is moved: a
stamp that is wrong alone moves nothing. They last 0.17 s in AAC and 0.16 s in Opus."""

MAX_LENGTH_BIAS_SECONDS = Fraction(40, 1000)
"""Vorbis blocks were seen stamped up to 21 ms off, by their length; a block further off than this
is elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundBlock:
    """Consecutive samples of one stream."""

    samples: NDArray[np.float32]
    """Sound (channel, sample)."""
    stated: int | None
    """Where its first sample lies, by its timestamp; None without one."""

    @property
    def num_samples(self) -> int:
        """Samples per channel."""
        return int(self.samples.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedBlock:
    """Samples and where they lie."""

    position: int
    """Of the first sample."""
    samples: NDArray[np.float32]
    """Sound (channel, sample), at least one sample."""

    @property
    def stop(self) -> int:
        """Position after the last sample."""
        return self.position + int(self.samples.shape[1])


def place_blocks(
    blocks: Iterable[SoundBlock], *, sample_rate: int, biased_by_length: bool = False
) -> Iterator[PlacedBlock]:
    """Blocks where their timestamps say, in order and without overlaps.

    A block follows the one before it without a seam, unless it and those after it are stated to
    lie elsewhere. Then it is moved there: forward, which leaves a gap, or back, which drops what
    lies before the end of the last block. Truthful timestamps are followed to within twice
    `SEAM_SECONDS`. `LOOK_AHEAD_BLOCKS` blocks are held at a time.

    Args:
        blocks: In the order in which they were decoded.
        sample_rate: Hz.
        biased_by_length: Timestamps are off by an amount that depends on a block's length, as
            those of Vorbis are in many files; only a change of that amount counts.
    """
    line = _TimeLine(sample_rate=sample_rate, biased_by_length=biased_by_length)
    for upcoming in _look_ahead(blocks):
        placed = line.place(upcoming)
        if placed is not None:
            yield placed


def without_false_times(blocks: Iterable[SoundBlock], *, sample_rate: int) -> Iterator[SoundBlock]:
    """Blocks, with their stated positions only if the first of them follow one another by these.

    For containers without timestamps. Where what is made up for them fits the first blocks' lengths
    it shows which are lost later; where it does not, only that of the first block is worth keeping.
    """
    coming = iter(blocks)
    first = list(islice(coming, LOOK_AHEAD_BLOCKS))
    if _follow_one_another(first, SEAM_SECONDS * sample_rate):
        yield from chain(first, coming)
        return
    yield from first[:1]
    for block in chain(first[1:], coming):
        yield replace(block, stated=None)


class _TimeLine:
    """Where the sound has got to."""

    def __init__(self, *, sample_rate: int, biased_by_length: bool) -> None:
        self._seam = int(SEAM_SECONDS * sample_rate)
        self._max_bias = int(MAX_LENGTH_BIAS_SECONDS * sample_rate)
        self._biases: dict[int, int] | None = {} if biased_by_length else None
        # Where the next block begins if there is no seam, and where all sound so far ends.
        self._next: int | None = None
        self._stop: int | None = None

    def place(self, upcoming: Sequence[SoundBlock]) -> PlacedBlock | None:
        """Places the first of some blocks; None if all of it is over already."""
        block = upcoming[0]
        position = self._position(upcoming)
        self._learn_bias(block, position)
        self._next = position + block.num_samples
        overlap = 0 if self._stop is None else max(0, self._stop - position)
        if overlap >= block.num_samples:
            return None
        self._stop = self._next
        return PlacedBlock(position=position + overlap, samples=block.samples[:, overlap:])

    def _position(self, upcoming: Sequence[SoundBlock]) -> int:
        deviations = self._deviations(upcoming)
        if self._next is None:
            return next(deviations, 0)
        return self._next + lasting_deviation(deviations, self._seam)

    def _deviations(self, upcoming: Sequence[SoundBlock]) -> Iterator[int]:
        """Stated position less that which follows without a seam, of blocks that tell."""
        chained = self._next or 0
        for block in upcoming:
            if block.stated is not None:
                deviation = block.stated - chained
                bias = self._bias(block, deviation)
                if bias is not None:
                    yield deviation - bias
            chained += block.num_samples

    def _bias(self, block: SoundBlock, deviation: int) -> int | None:
        """By how much stamps of blocks of this length are off; None if that is not known yet."""
        if self._biases is None or self._next is None:
            return 0
        unknown = None if abs(deviation) <= self._max_bias else 0
        return self._biases.get(_length_class(block), unknown)

    def _learn_bias(self, block: SoundBlock, position: int) -> None:
        if self._biases is None or block.stated is None:
            return
        bias = block.stated - position
        if abs(bias) <= self._max_bias:
            self._biases.setdefault(_length_class(block), bias)


def lasting_deviation(deviations: Iterable[int], seam: int) -> int:
    """How far blocks are off to the same side, all of them by more than `seam`; else 0.

    Where they differ, sound moves on again among them: those near the smallest are the first.
    """
    lasting: list[int] = []
    for deviation in deviations:
        if abs(deviation) <= seam:
            return 0
        lasting.append(deviation)
    if not lasting or min(lasting) < 0 < max(lasting):
        return 0
    smallest = min(abs(deviation) for deviation in lasting)
    return round(median(d for d in lasting if abs(d) <= smallest + seam))


def _follow_one_another(blocks: Sequence[SoundBlock], seam: Fraction) -> bool:
    return all(
        before.stated is not None
        and after.stated is not None
        and abs(after.stated - before.stated - before.num_samples) <= seam / LOOK_AHEAD_BLOCKS
        for before, after in pairwise(blocks)
    )


def _look_ahead(blocks: Iterable[SoundBlock]) -> Iterator[Sequence[SoundBlock]]:
    """Each block with those that follow it, `LOOK_AHEAD_BLOCKS` in all, fewer at the end."""
    coming = iter(blocks)
    upcoming = deque(islice(coming, LOOK_AHEAD_BLOCKS))
    while upcoming:
        yield upcoming
        upcoming.popleft()
        upcoming.extend(islice(coming, 1))


def _length_class(block: SoundBlock) -> int:
    """Equal for blocks of nearly the same length, different for Vorbis's short and long ones."""
    return block.num_samples.bit_length()
