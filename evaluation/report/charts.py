"""Curves over steps as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evaluation.report.figures import svg, svg_text

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 24, 34
_MAX_POINTS = 400
_MAX_TICKS = 7
_MARGIN = 0.04


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    style: str
    """A class of the style sheet, as in ``svg .line.video``."""
    points: tuple[tuple[float, float], ...]
    """(x, y); what is not finite, or not above 0, is not drawn."""
    is_faint: bool = False
    """Behind the others, and not in the legend."""


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str) -> str:
    """Curves of values above 0 on a logarithmic axis, and a legend below.

    Of long curves some points are drawn, spread evenly.
    """
    drawn = [(curve, _drawable(curve.points)) for curve in curves]
    points = [point for _, some in drawn for point in some]
    if not points:
        return '<p class="note">Nothing to draw: no value is finite and above 0.</p>'
    frame = _Frame.around(points)
    parts = [frame.axes(x_label, y_label)]
    parts += [_path(curve, some, frame) for curve, some in drawn if some]
    label = f"{y_label} over {x_label}: {', '.join(c.name for c in curves if not c.is_faint)}"
    return svg(_WIDTH, _HEIGHT, label, parts) + _legend([curve for curve, some in drawn if some])


def log_ticks(low: float, high: float) -> list[float]:
    """Round values within a range of positive ones, at most 7, for a logarithmic axis."""
    if high / low < 4:
        return _linear_ticks(low, high)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**power for power in range(first, last + 1) for d in digits]
        within = [tick for tick in ticks if low <= tick <= high]
        if len(within) <= _MAX_TICKS:
            return within
    return within[:: math.ceil(len(within) / _MAX_TICKS)]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within a range."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / _MAX_TICKS))
    step = next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) < _MAX_TICKS)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Where values lie within a chart."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Frame:
        """All of the points, and a little more above and below."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        room = max((max(ys) / min(ys)) ** _MARGIN, 1.01)
        return cls(x=(min(0.0, *xs), max(xs)), y=(min(ys) / room, max(ys) * room))

    def across(self, x: float) -> float:
        """In units of the drawing."""
        low, high = self.x
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - low) / ((high - low) or 1.0)

    def down(self, y: float) -> float:
        """In units of the drawing."""
        low, high = (math.log(end) for end in self.y)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log(y)) / (high - low)

    def axes(self, x_label: str, y_label: str) -> str:
        """Lines at round values, and what they are."""
        base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [f'<path class="axis" d="M{_LEFT} {base}H{right}"/>']
        for tick in log_ticks(*self.y):
            y = self.down(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(svg_text(_LEFT - 7, y + 4, f"{tick:.4g}", "end"))
        for tick in _linear_ticks(*self.x):
            anchor = "end" if self.across(tick) > right - 16 else "middle"
            parts.append(svg_text(self.across(tick), base + 15, f"{tick:,.5g}", anchor))
        parts.append(svg_text(0, 11, f"{y_label}, logarithmic", "start"))
        parts.append(svg_text(right, base + 30, x_label, "end"))
        return "".join(parts)


def _drawable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    some = [(x, y) for x, y in points if math.isfinite(y) and y > 0]
    if len(some) <= _MAX_POINTS:
        return some
    return [some[index * (len(some) - 1) // (_MAX_POINTS - 1)] for index in range(_MAX_POINTS)]


def _path(curve: Curve, points: Sequence[tuple[float, float]], frame: _Frame) -> str:
    places = [f"{frame.across(x):.1f} {frame.down(y):.1f}" for x, y in points]
    css = f"line {curve.style}{' faint' if curve.is_faint else ''}"
    # A curve of one point would not be seen.
    place = places[0] if len(places) > 1 else f"{places[0]}L{places[0]}"
    line = f'<path class="{css}" d="M{"L".join([place, *places[1:]])}"/>'
    if curve.is_faint or len(points) > 20:
        return line
    dots = (
        f'<circle class="mark {curve.style}" cx="{place.split()[0]}" cy="{place.split()[1]}" '
        f'r="3"><title>{escape(curve.name)}: {y:.4g} at {x:,g}</title></circle>'
        for place, (x, y) in zip(places, points, strict=True)
    )
    return line + "".join(dots)


def _legend(curves: Sequence[Curve]) -> str:
    keys = (
        f'<span><svg class="key" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path class="line {curve.style}" d="M1 4H23"/></svg>{escape(curve.name)}</span>'
        for curve in curves
        if not curve.is_faint
    )
    return f'<p class="legend">{"".join(keys)}</p>'
