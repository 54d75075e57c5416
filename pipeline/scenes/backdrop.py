"""Skies, walls and hills: the still surroundings of a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.scenes.canvas import Canvas, Floats
from pipeline.scenes.colour import Rgb, blend, oklch

Mood = Literal["day", "dawn", "dusk", "night", "overcast", "pastel", "lamplight"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sky:
    """A vertical gradient with one broad light in it; a wall is a sky too."""

    top: Rgb
    middle: Rgb
    bottom: Rgb
    horizon: float
    """Height y at which `bottom` is reached."""
    light: tuple[float, float, float]
    """x, y and radius of the light."""
    light_colour: Rgb
    light_strength: float

    def paint(self, canvas: Canvas) -> None:
        """Fill the canvas."""
        halfway = self.horizon * 0.55
        canvas.gradient(((0, self.top), (halfway, self.middle), (self.horizon, self.bottom)))
        canvas.glow(*self.light, self.light_colour, self.light_strength)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hills:
    """A rolling silhouette that fades downwards."""

    base: float
    """Mean height y of the crest."""
    relief: float
    waves: tuple[tuple[float, float], ...]
    """Angular frequency and phase of each undulation."""
    colour: Rgb
    colour_below: Rgb

    def crest(self, x: Floats) -> Floats:
        """Height y of the crest in each column."""
        rise = np.zeros_like(x)
        for frequency, phase in self.waves:
            rise += np.sin(x * frequency + phase) / len(self.waves)
        return np.asarray(self.base - self.relief * rise, np.float32)

    def paint(self, canvas: Canvas) -> None:
        """Paint the hills over what is there."""
        crest = self.crest(canvas.x)
        canvas.under(crest, self.colour, colour_below=self.colour_below, depth=0.35)


def draw_sky(rng: np.random.Generator, moods: Sequence[Mood], *, horizon: float = 1.0) -> Sky:
    """A random sky in one of the moods."""
    mood = moods[int(rng.integers(len(moods)))]
    shift = rng.uniform(-1, 1)
    top, middle, bottom, glow, strength = _mood_colours(mood, shift, rng.uniform(0, 360))
    return Sky(
        top=top,
        middle=middle,
        bottom=bottom,
        horizon=horizon,
        light=(
            rng.uniform(0.1, 0.9),
            horizon * rng.uniform(0.15, 0.75),
            rng.uniform(0.45, 0.9),
        ),
        light_colour=glow,
        light_strength=strength * rng.uniform(0.6, 1.2),
    )


def draw_hills(
    rng: np.random.Generator, sky: Sky, *, base: float, nearness: float, hue: float
) -> Hills:
    """Random hills that take their haze from the sky; `nearness` 0 is far, 1 near."""
    brightness = 0.3 * sky.bottom[0] + 0.6 * sky.bottom[1] + 0.1 * sky.bottom[2]
    body = oklch((0.28 + 0.34 * brightness) * (1 - 0.25 * nearness), 0.05, hue)
    colour = blend(sky.bottom, body, 0.35 + 0.6 * nearness)
    return Hills(
        base=base,
        relief=rng.uniform(0.02, 0.07),
        waves=tuple((rng.uniform(2, 9), rng.uniform(0, 2 * math.pi)) for _ in range(3)),
        colour=colour,
        colour_below=blend(colour, sky.bottom, 0.25),
    )


def _mood_colours(mood: Mood, shift: float, hue: float) -> tuple[Rgb, Rgb, Rgb, Rgb, float]:
    """Top, middle and bottom of the gradient, colour and strength of its light."""
    if mood == "day":
        return (
            oklch(0.66, 0.12, 245 + 14 * shift),
            oklch(0.79, 0.09, 232 + 20 * shift),
            oklch(0.93, 0.04, 200 + 60 * shift),
            (1.0, 0.95, 0.8),
            0.18,
        )
    if mood == "dawn":
        return (
            oklch(0.66, 0.09, 270 + 20 * shift),
            oklch(0.80, 0.08, 330 + 25 * shift),
            oklch(0.92, 0.08, 65 + 20 * shift),
            (1.0, 0.8, 0.6),
            0.22,
        )
    if mood == "dusk":
        return (
            oklch(0.34, 0.10, 285 + 20 * shift),
            oklch(0.55, 0.14, 355 + 30 * shift),
            oklch(0.80, 0.13, 62 + 16 * shift),
            (1.0, 0.6, 0.35),
            0.28,
        )
    if mood == "night":
        return (
            oklch(0.17, 0.05, 275 + 25 * shift),
            oklch(0.25, 0.07, 270 + 30 * shift),
            oklch(0.36, 0.08, 255 + 50 * shift),
            (0.4, 0.45, 0.7),
            0.16,
        )
    if mood == "overcast":
        return (
            oklch(0.52, 0.03 + 0.02 * shift, 250 + 30 * shift),
            oklch(0.64, 0.035, 240 + 40 * shift),
            oklch(0.78, 0.03, 220 + 60 * shift),
            (0.9, 0.95, 1.0),
            0.12,
        )
    if mood == "lamplight":
        return (
            oklch(0.30, 0.06, hue),
            oklch(0.38, 0.07, hue + 10),
            oklch(0.44, 0.07, hue + 20),
            oklch(0.85, 0.10, 75),
            0.30,
        )
    return (
        oklch(0.88, 0.06, hue),
        oklch(0.85, 0.07, hue + 20 + 10 * shift),
        oklch(0.80, 0.08, hue + 45 + 15 * shift),
        (1.0, 0.97, 0.9),
        0.14,
    )
