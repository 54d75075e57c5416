"""Small histograms of what rows say, and their drawing in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 10
_BLOCKS = " ▏▎▍▌▋▊▉█"
"""Bars of no to eight eighths of a character."""
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How often values fall between edges that are round numbers."""

    title: str
    """What the values are, for example ``clip length``."""
    unit: str
    edges: tuple[float, ...]
    """One more than there are counts; a bin has its lower edge and not its upper one."""
    counts: tuple[int, ...]
    minimum: float
    median: float
    maximum: float
    num_absent: int
    """Values that were not given, or are no finite number; they are in no bin."""


def histogram_of(values: NDArray[Any], *, title: str, unit: str) -> Histogram | None:
    """At most ten bins of one width over some values; None where there are none.

    Args:
        values: Numbers; NaN where one was not given.
        title: What they are.
        unit: Theirs.
    """
    given = values[np.isfinite(values)]
    if not len(given):
        return None
    lowest, highest = float(given.min()), float(given.max())
    edges = _round_edges(lowest, highest, is_whole=bool((given == np.round(given)).all()))
    places = np.searchsorted(edges, given, side="right") - 1
    return Histogram(
        title=title,
        unit=unit,
        edges=tuple(edges),
        counts=tuple(np.bincount(places, minlength=len(edges) - 1).tolist()),
        minimum=lowest,
        median=float(np.median(given)),
        maximum=highest,
        num_absent=len(values) - len(given),
    )


def histogram_lines(histogram: Histogram, *, width: int = 30) -> list[str]:
    """A headline, then one line a bin: its edges, a bar, and the count.

    Args:
        histogram: What to draw.
        width: Characters of the longest bar.
    """
    values = (histogram.minimum, histogram.median, histogram.maximum)
    lowest, median, highest = (_scaled(value) for value in values)
    absent = f", {histogram.num_absent:,} without" if histogram.num_absent else ""
    spans = _spans(histogram.edges)
    counts = [f"{count:,}" for count in histogram.counts]
    longest, digits = max(histogram.counts), max(map(len, counts))
    return [
        f"{histogram.title} ({histogram.unit}): min {lowest}, median {median}, max {highest}"
        + absent,
        *(
            f"  {span}  {_bar(count, longest, width):{width}}  {text:>{digits}}"
            for span, count, text in zip(spans, histogram.counts, counts, strict=True)
        ),
    ]


def _round_edges(lowest: float, highest: float, *, is_whole: bool) -> list[float]:
    """Edges around two values, multiples of 1, 2 or 5 times a power of ten; of whole numbers 1."""
    width = highest - lowest or (1.0 if is_whole else abs(highest))
    power = math.floor(math.log10(width / MAX_BINS))
    steps = (Fraction(10) ** (power + more) * factor for more in (0, 1) for factor in (1, 2, 5))
    bins = (_multiples(step, lowest, highest) for step in steps if step >= is_whole)
    return next(edges for edges in bins if len(edges) - 1 <= MAX_BINS)


def _multiples(step: Fraction, lowest: float, highest: float) -> list[float]:
    """The multiples of a step from the last that is not above one value to the first above both.

    They are compared as they are rounded: 0.3 is a little less than 3 / 10, and lies on that edge.
    """
    first, last = (math.floor(Fraction(value) / step) for value in (lowest, highest))
    first += float(step * (first + 1)) <= lowest
    last += float(step * (last + 1)) <= highest
    return [float(step * number) for number in range(first, last + 2)]


def _spans(edges: Sequence[float]) -> list[str]:
    """Each bin's two edges, all of one width."""
    labels = [_scaled(edge) for edge in edges]
    if len(set(labels)) < len(labels):
        labels = [str(edge) for edge in edges]
    longest = max(map(len, labels))
    return [f"{low:>{longest}} - {high:<{longest}}" for low, high in pairwise(labels)]


def _scaled(value: float) -> str:
    """A number of four digits with the letter of its thousands: ``1.6M``."""
    for scale, letter in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}"


def _bar(count: int, longest: int, width: int) -> str:
    """A bar in eighths of a character; whatever is not 0 shows."""
    eighths = max(round(count / longest * width * 8), count > 0)
    return _BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()
