"""A canvas of soft-edged shapes: coverage from signed distances, in unit coordinates.

The unit square [0, 1]² is the centred square of the picture, x to the right and y downwards, its
side the picture's shorter one; a wider or taller picture shows more of the surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.colour import Rgb

Floats = NDArray[np.floating]
"""float32; numpy's stubs lose the width in some operations."""


class Canvas:
    """An RGB picture being painted.

    Attributes:
        x: Unit coordinate of each column's centre, (width,).
        y: Unit coordinate of each row's centre, (height,).
    """

    __slots__ = ("_planes", "_scale", "x", "y")

    def __init__(self, height: int, width: int) -> None:
        self._scale = float(min(height, width))
        self.x: Floats = _centres(width, self._scale)
        self.y: Floats = _centres(height, self._scale)
        # Planes, not pixels: numpy's inner loop then runs over a row instead of three channels.
        self._planes: Floats = np.zeros((3, height, width), np.float32)

    def copy(self) -> Canvas:
        """A canvas with the same picture, to paint on."""
        twin = Canvas.__new__(Canvas)
        twin._scale, twin.x, twin.y = self._scale, self.x, self.y
        twin._planes = self._planes.copy()
        return twin

    def to_pixels(self) -> NDArray[np.uint8]:
        """The picture, (height, width, 3), 0..255."""
        levels = self._planes * np.float32(255) + np.float32(0.5)
        np.clip(levels, 0, 255, out=levels)
        return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))

    def gradient(self, stops: Sequence[tuple[float, Rgb]]) -> None:
        """Fill everything with a vertical gradient through (y, colour) stops, y ascending."""
        heights = [y for y, _ in stops]
        for channel in range(3):
            column = np.interp(self.y, heights, [colour[channel] for _, colour in stops])
            self._planes[channel] = column.astype(np.float32)[:, None]

    def tint(self, colour: Rgb, opacity: float) -> None:
        """Blend everything towards a colour."""
        for channel, plane in enumerate(self._planes):
            plane *= 1 - opacity
            plane += opacity * colour[channel]

    def glow(self, x: float, y: float, radius: float, colour: Rgb, strength: float) -> None:
        """Add light that falls smoothly to nothing at `radius`, and never washes out to white."""
        window = self._window(x, y, radius, radius)
        if window is None or strength <= 0:
            return
        rows, columns, u, v = window
        light = np.maximum(1 - (u * u + v * v) / (radius * radius), 0)
        light *= light
        self.light(rows, columns, light * strength, colour)

    def ellipse(
        self,
        x: float,
        y: float,
        radii: tuple[float, float],
        colour: Rgb,
        *,
        colour_below: Rgb | None = None,
        opacity: float = 1.0,
        softness: float = 0.0,
        angle: float = 0.0,
    ) -> None:
        """Paint an ellipse; `softness` is the width of its blurred edge, `angle` in radians."""
        spread = 1 + softness / (2 * min(radii))
        reach = (max(radii), max(radii)) if angle else radii
        window = self._window(x, y, spread * reach[0], spread * reach[1])
        if window is None:
            return
        rows, columns, u, v = window
        if angle:
            u, v = _rotate(u, v, angle)
        distance = (np.hypot(u / radii[0], v / radii[1]) - 1) * min(radii)
        coverage = self._coverage(distance, softness) * opacity
        if colour_below is None:
            self._over(rows, columns, coverage, colour)
        else:
            self._over_shaded(rows, columns, coverage, colour, colour_below, v / radii[1])

    def ball(self, x: float, y: float, radii: tuple[float, float], colour: Rgb) -> None:
        """Paint a shaded ball, lit from the upper left."""
        window = self._window(x, y, *radii)
        if window is None:
            return
        rows, columns, u, v = window
        u, v = u / radii[0], v / radii[1]
        coverage = self._coverage((np.hypot(u, v) - 1) * min(radii), 0.0)
        away = np.minimum(((u + 0.35) ** 2 + (v + 0.42) ** 2) * 0.42, 1.2)
        shade = 1.1 - 0.62 * away
        gleam = 0.5 * np.maximum(1 - away * 5.5, 0) ** 2
        for channel, plane in enumerate(self._planes[:, rows, columns]):
            plane += coverage * (np.minimum(colour[channel] * shade + gleam, 1) - plane)

    def box(
        self,
        x: float,
        y: float,
        half_sizes: tuple[float, float],
        colour: Rgb,
        *,
        colour_below: Rgb | None = None,
        corner: float = 0.0,
        opacity: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """Paint a rectangle with rounded corners, shaded from top to bottom if asked."""
        window = self._window(x, y, half_sizes[0] + softness / 2, half_sizes[1] + softness / 2)
        if window is None:
            return
        rows, columns, u, v = window
        corner = min(corner, *half_sizes)
        du = np.abs(u) - (half_sizes[0] - corner)
        dv = np.abs(v) - (half_sizes[1] - corner)
        outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
        distance = outside + np.minimum(np.maximum(du, dv), 0) - corner
        coverage = self._coverage(distance, softness) * opacity
        if colour_below is None:
            self._over(rows, columns, coverage, colour)
        else:
            self._over_shaded(rows, columns, coverage, colour, colour_below, v / half_sizes[1])

    def segment(
        self,
        start: tuple[float, float],
        stop: tuple[float, float],
        radius: float,
        colour: Rgb,
        *,
        opacity: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """Paint a line with round ends, `radius` half its thickness."""
        along_x, along_y = stop[0] - start[0], stop[1] - start[1]
        reach = radius + softness / 2
        window = self._window(
            (start[0] + stop[0]) / 2,
            (start[1] + stop[1]) / 2,
            abs(along_x) / 2 + reach,
            abs(along_y) / 2 + reach,
        )
        if window is None:
            return
        rows, columns, u, v = window
        u, v = u + along_x / 2, v + along_y / 2
        length = max(along_x * along_x + along_y * along_y, 1e-9)
        share = np.clip((u * along_x + v * along_y) / length, 0, 1)
        distance = np.hypot(u - share * along_x, v - share * along_y) - radius
        self._over(rows, columns, self._coverage(distance, softness) * opacity, colour)

    def ring(
        self,
        x: float,
        y: float,
        radii: tuple[float, float],
        thickness: float,
        colour: Rgb,
        *,
        opacity: float,
    ) -> None:
        """Paint the soft outline of an ellipse."""
        window = self._window(x, y, radii[0] + thickness, radii[1] + thickness)
        if window is None:
            return
        rows, columns, u, v = window
        away = (np.hypot(u / radii[0], v / radii[1]) - 1) * (radii[0] / thickness)
        line = np.maximum(1 - away * away, 0)
        self._over(rows, columns, line * line * opacity, colour)

    def under(
        self,
        top: Floats,
        colour: Rgb,
        *,
        colour_below: Rgb | None = None,
        depth: float = 0.5,
        opacity: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """Paint everything below a curve, shaded to `colour_below` at `depth` under its crest.

        Args:
            top: Height y of the curve in each column, (width,).
            colour: Colour at the crest.
            colour_below: Colour from `depth` below it, or none for an even fill.
            depth: Distance over which the colour changes.
            opacity: 0 to 1.
            softness: Width of the blurred edge.
        """
        first = int(np.searchsorted(self.y, float(top.min()) - softness / 2 - 1 / self._scale))
        rows, columns = slice(first, None), slice(None)
        y = self.y[rows, None]
        coverage = self._coverage(top[None, :] - y, softness) * opacity
        if colour_below is None:
            self._over(rows, columns, coverage, colour)
        else:
            along = np.clip((y - float(top.min())) / depth, 0, 1) * 2 - 1
            self._over_shaded(rows, columns, coverage, colour, colour_below, along)

    def dots(
        self,
        x: Floats,
        y: Floats,
        radius: Floats,
        strength: Floats,
        colours: Floats,
    ) -> None:
        """Add many small soft lights at once.

        Args:
            x: Centres, (dot,).
            y: Centres, (dot,).
            radius: Where each light has fallen to nothing, (dot,).
            strength: Peak brightness, (dot,).
            colours: (dot, 3).
        """
        if not len(x):
            return
        height, width = len(self.y), len(self.x)
        column = (x - self.x[0]) * self._scale
        row = (y - self.y[0]) * self._scale
        # Below one pixel a light keeps its energy, not its size.
        size = np.maximum(radius * self._scale, 1.2)
        light = strength * (radius * self._scale / size) ** 2
        reach = math.ceil(float(size.max()))
        offsets = np.arange(-reach, reach + 1, dtype=np.float32)
        rows, columns = np.rint(row), np.rint(column)
        dv = (rows - row)[:, None] + offsets
        du = (columns - column)[:, None] + offsets
        squared = (dv * dv)[:, :, None] + (du * du)[:, None, :]
        profile = np.maximum(1 - squared / (size * size)[:, None, None], 0) ** 2
        patches = (light[:, None] * colours)[:, :, None, None] * profile[:, None]
        for i in range(len(x)):
            top, left = int(rows[i]) - reach, int(columns[i]) - reach
            first, start = max(-top, 0), max(-left, 0)
            last, stop = min(height - top, 2 * reach + 1), min(width - left, 2 * reach + 1)
            if first < last and start < stop:
                region = self._planes[:, top + first : top + last, left + start : left + stop]
                region += patches[i, :, first:last, start:stop]

    def light(self, rows: slice, columns: slice, light: Floats, colour: Rgb) -> None:
        """Screen coloured light onto a part of the picture; `light` is (row, column), 0 to 1."""
        for channel, plane in enumerate(self._planes[:, rows, columns]):
            plane += light * colour[channel] * (1 - plane)

    def _window(
        self, x: float, y: float, reach_x: float, reach_y: float
    ) -> tuple[slice, slice, Floats, Floats] | None:
        """Rows and columns within reach, and offsets (1, column) and (row, 1) from (x, y)."""
        edge = 1 / self._scale
        first, last = np.searchsorted(self.y, (y - reach_y - edge, y + reach_y + edge))
        left, right = np.searchsorted(self.x, (x - reach_x - edge, x + reach_x + edge))
        if first >= last or left >= right:
            return None
        rows, columns = slice(int(first), int(last)), slice(int(left), int(right))
        return rows, columns, self.x[None, columns] - x, self.y[rows, None] - y

    def _coverage(self, distance: Floats, softness: float) -> Floats:
        """Share of each pixel inside, from its signed distance: a ramp, smooth when soft."""
        coverage: Floats = np.clip(0.5 - distance / (softness + 1.5 / self._scale), 0, 1)
        if softness:
            coverage *= coverage * (3 - 2 * coverage)
        return coverage

    def _over(self, rows: slice, columns: slice, coverage: Floats, colour: Rgb) -> None:
        for channel, plane in enumerate(self._planes[:, rows, columns]):
            plane += coverage * (colour[channel] - plane)

    def _over_shaded(
        self,
        rows: slice,
        columns: slice,
        coverage: Floats,
        colour: Rgb,
        colour_below: Rgb,
        along: Floats,
    ) -> None:
        """Paint from `colour` where `along` is -1 to `colour_below` where it is 1."""
        share = np.clip(along * 0.5 + 0.5, 0, 1)
        for channel, plane in enumerate(self._planes[:, rows, columns]):
            shade = colour[channel] + (colour_below[channel] - colour[channel]) * share
            plane += coverage * (shade - plane)


def _centres(num_pixels: int, scale: float) -> Floats:
    return ((np.arange(num_pixels) + 0.5 - num_pixels / 2) / scale + 0.5).astype(np.float32)


def _rotate(u: Floats, v: Floats, angle: float) -> tuple[Floats, Floats]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return u * cosine + v * sine, v * cosine - u * sine
