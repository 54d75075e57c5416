"""Rain that swells and ebbs over a lake: the denser it falls, the louder it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Hills, Sky, draw_hills, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, attack, sweep
from pipeline.scenes.swell import Swell

FALL_SECONDS = 0.55
"""How long a raindrop is seen falling."""
RIPPLE_SECONDS = 0.7
MAX_DROPS_PER_SECOND = 26.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """A raindrop, and the moment and place it meets the lake."""

    time_seconds: float
    x: float
    y: float
    size: float
    """1 near, smaller far away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rain:
    """Rain over a lake: the denser it falls, the louder it is."""

    sky: Sky
    hills: tuple[Hills, ...]
    shore: float
    lake_colour: Rgb
    lake_colour_near: Rgb
    density: Swell
    """Share of the heaviest rain, 0 to 1."""
    drops: tuple[Drop, ...]

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Sky, hills and lake."""
        self.sky.paint(canvas)
        for hills in self.hills:
            hills.paint(canvas)
        top = np.full_like(canvas.x, self.shore)
        canvas.under(
            top,
            self.lake_colour,
            colour_below=self.lake_colour_near,
            depth=1 - self.shore,
            softness=0.012,
        )

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Darkening sky, rings on the lake, drops in the air."""
        density = self.density.at(time_seconds)
        canvas.tint((0.16, 0.19, 0.27), 0.38 * density)
        light = blend(self.sky.bottom, (1, 1, 1), 0.65)
        for drop in self.drops:
            since = time_seconds - drop.time_seconds
            if 0 <= since < RIPPLE_SECONDS:
                self._paint_ripple(canvas, drop, since / RIPPLE_SECONDS, light)
            elif -FALL_SECONDS < since < 0:
                y = drop.y + 1.9 * since
                canvas.segment(
                    (drop.x, y - 0.075 * drop.size),
                    (drop.x, y),
                    0.010 * drop.size,
                    light,
                    opacity=0.75,
                    softness=0.006,
                )

    def add_sound(self, mix: Mix) -> None:
        """A rush of far drops that follows the density, and a plink of each near one."""
        density = self.density.over(mix.times)
        for pan in (0.1, 0.9):
            rush = mix.noise(900, 7000)
            mix.spread(rush, gain=0.012 + 0.1 * density**1.5, pan=pan)
        times = mix.grain_times(0.12)
        for drop in self.drops:
            hz = 2100 - 1200 * drop.size
            plink = sweep(hz * (1 + 2.5 * times), mix.sample_rate)
            plink *= np.exp(-times / 0.022) * attack(times, 0.001)
            mix.place(plink, drop.time_seconds, gain=0.22 * drop.size, pan=drop.x)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every drop that meets the lake."""
        return tuple(
            AudioVisualEvent(time_seconds=drop.time_seconds, kind="drop") for drop in self.drops
        )

    def _paint_ripple(self, canvas: Canvas, drop: Drop, share: float, light: Rgb) -> None:
        reach = drop.size * (0.015 + 0.085 * math.sqrt(share))
        canvas.ring(
            drop.x,
            drop.y,
            (reach, reach * 0.34),
            0.020 * drop.size,
            light,
            opacity=0.9 * (1 - share) ** 1.5,
        )


def draw_rain(rng: np.random.Generator, seconds: float) -> Rain:
    """A shower of random strength over a random lake."""
    shore = rng.uniform(0.52, 0.62)
    sky = draw_sky(rng, ("overcast", "overcast", "dawn", "dusk", "night"), horizon=shore)
    density = Swell(
        low=rng.uniform(0.02, 0.15),
        high=rng.uniform(0.7, 1.0),
        period=rng.uniform(2.6, 5.0),
        phase=rng.uniform(0, 2 * math.pi),
    )
    hue = rng.uniform(150, 280)
    return Rain(
        sky=sky,
        hills=tuple(
            draw_hills(rng, sky, base=shore - 0.11 + 0.05 * i, nearness=0.3 + 0.4 * i, hue=hue)
            for i in range(2)
        ),
        shore=shore,
        lake_colour=blend(sky.bottom, oklch(0.6, 0.06, 235), 0.4),
        lake_colour_near=blend(sky.middle, oklch(0.28, 0.06, 245), 0.7),
        density=density,
        drops=_draw_drops(rng, density, shore, seconds),
    )


def _draw_drops(
    rng: np.random.Generator, density: Swell, shore: float, seconds: float
) -> tuple[Drop, ...]:
    """Poisson arrivals, thinned to the density, from before the scene until after it."""
    drops = []
    time = -RIPPLE_SECONDS
    while time < seconds + FALL_SECONDS:
        time += rng.exponential(1 / MAX_DROPS_PER_SECOND)
        near, x, luck = rng.uniform(), rng.uniform(0, 1), rng.uniform()
        if luck < density.at(time):
            y = shore + (0.96 - shore) * (0.06 + 0.94 * near)
            drops.append(Drop(time_seconds=time, x=x, y=y, size=0.4 + 0.6 * near))
    return tuple(drops)
