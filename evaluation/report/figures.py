"""Small charts as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

_MINUS = "\N{MINUS SIGN}"
_WIDTH, _HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 18, 24
_MIN_BARS, _MAX_BARS = 5, 14
_ROW_HEIGHT = 25


def histogram(values: Sequence[float], *, unit: str, of: str = "clips") -> str:
    """Counts of values over bars of a round width; ``of`` is what has the values."""
    edges = bar_edges(values)
    counts, _ = np.histogram(values, bins=np.asarray(edges))
    bar_width = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    room = _HEIGHT - _TOP - _BOTTOM
    parts = []
    for index, count in enumerate(counts.tolist()):
        height = room * count / int(counts.max())
        x, y = _LEFT + index * bar_width, _TOP + room - height
        between = f"{_number(edges[index])} to {_number(edges[index + 1])} {unit}"
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{bar_width - 2:.1f}" '
            f'height="{height:.1f}" rx="2"><title>{count} {of}, {escape(between)}</title></rect>'
        )
        if count:
            parts.append(svg_text(x + bar_width / 2, y - 4, str(count), "middle"))
    base = _TOP + room
    parts.append(f'<path class="axis" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>')
    step = math.ceil(len(edges) / 8)
    for index in range(0, len(edges), step):
        anchor = "start" if index == 0 else "end" if index == len(counts) else "middle"
        parts.append(svg_text(_LEFT + index * bar_width, base + 15, _number(edges[index]), anchor))
    label = f"Histogram of {len(values)} values in {unit}"
    return svg(_WIDTH, _HEIGHT, label, parts)


def bar_edges(values: Sequence[float]) -> list[float]:
    """Edges of bars of width 1, 2 or 5 times a power of ten that hold all values.

    There are 5 bars at least, so that few different values still look like a distribution.
    """
    low, high = min(values), max(values)
    span = max(high - low, 0.01 * max(abs(low), abs(high)), 0.01)
    power = 10.0 ** math.floor(math.log10(span / _MAX_BARS))
    width = next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= _MAX_BARS - 2)
    if high == low:
        width = 1.0
    first, stop = math.floor(low / width), math.floor(high / width) + 1
    spare = max(0, _MIN_BARS - (stop - first))
    first, stop = first - spare // 2, stop + spare - spare // 2
    return [round(index * width, 9) for index in range(first, stop + 1)]


def channel_ranges(mean: Sequence[float], std: Sequence[float]) -> str:
    """One line a channel: its mean, and one standard deviation to either side, about zero."""
    reach = max(abs(m) + s for m, s in zip(mean, std, strict=True)) or 1.0
    height = _ROW_HEIGHT * len(mean) + 4
    centre, scale = 112, 82 / reach
    parts = [f'<path class="axis" d="M{centre} 0V{height - 4}"/>']
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        y = _ROW_HEIGHT * channel + _ROW_HEIGHT / 2
        x = centre + scale * m
        parts.append(
            f'<path class="range" d="M{x - scale * s:.1f} {y}H{x + scale * s:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="4"/>'
        )
        parts.append(svg_text(_LEFT, y + 4, str(channel), "start"))
        parts.append(svg_text(210, y + 4, f"{_signed(m)} ± {s:.3f}", "start"))
    return svg(300, height, "Mean and standard deviation of each latent channel", parts)


def svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """A drawing of some size, and what it is for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def svg_text(x: float, y: float, text: str, anchor: str) -> str:
    """Words at a place: those of ``anchor`` start, middle or end lie there."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:g}".replace("-", _MINUS)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", _MINUS)
