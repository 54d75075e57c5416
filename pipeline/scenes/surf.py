"""Surf: sheets of sea that rise in sets; the higher they stand, the louder they roar."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas, Floats
from pipeline.scenes.colour import Rgb, blend, oklch
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix
from pipeline.scenes.swell import Swell


@dataclass(frozen=True, kw_only=True, slots=True)
class Wave:
    """One sheet of the sea: a travelling undulation that grows with the swell."""

    base: float
    reach: float
    """How far it rises at the height of the swell."""
    frequency: float
    speed: float
    phase: float
    lag_seconds: float
    colour: Rgb
    colour_below: Rgb


@dataclass(frozen=True, kw_only=True, slots=True)
class Surf:
    """Sheets of sea that rise in sets; the higher they stand, the louder they roar."""

    sky: Sky
    sun: tuple[float, float, float]
    sun_colour: Rgb
    swell: Swell
    sharpness: float
    """Power that makes the sets short and the lulls long."""
    waves: tuple[Wave, ...]
    crests: tuple[float, ...]
    """Times at which the swell is highest."""

    def height(self, time_seconds: float) -> float:
        """Height of the swell, 0 to 1."""
        return float(self.swell.at(time_seconds) ** self.sharpness)

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Sky and sun."""
        self.sky.paint(canvas)
        x, y, radius = self.sun
        canvas.glow(x, y, radius * 4.5, self.sun_colour, 0.3)
        canvas.ellipse(x, y, (radius, radius), self.sun_colour, softness=0.02)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """The sheets from far to near, each with its foam."""
        for wave in self.waves:
            height = self.height(time_seconds - wave.lag_seconds)
            top = self._surface(wave, canvas.x, height, time_seconds)
            foam = 0.012 + 0.05 * height
            canvas.under(top, (1, 1, 1), opacity=0.2 + 0.75 * height, softness=0.012)
            canvas.under(
                top + np.float32(foam),
                wave.colour,
                colour_below=wave.colour_below,
                depth=0.3,
                softness=0.02 + 0.4 * foam,
            )

    def add_sound(self, mix: Mix) -> None:
        """A low rumble with the swell, and a bright hiss of foam at its height."""
        nearest = self.waves[-1].lag_seconds
        height = self.swell.over(mix.times - nearest) ** self.sharpness
        for pan in (0.1, 0.9):
            mix.spread(mix.noise(80, 500), gain=0.012 + 0.16 * height, pan=pan)
            mix.spread(mix.noise(700, 5000), gain=0.006 + 0.13 * height**2, pan=pan)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every time the nearest sheet stands highest."""
        return tuple(AudioVisualEvent(time_seconds=time, kind="crest") for time in self.crests)

    def _surface(self, wave: Wave, x: Floats, height: float, time_seconds: float) -> Floats:
        turn = wave.frequency * x + wave.phase + wave.speed * time_seconds
        ridge = 0.65 * np.sin(turn) + 0.35 * np.sin(turn * 0.53 + 1.7)
        rise = wave.reach * (0.12 + 0.88 * height)
        return np.asarray(wave.base - rise * (0.72 + 0.28 * ridge), np.float32)


def draw_surf(rng: np.random.Generator, seconds: float) -> Surf:
    """A sea of random colour, tempo and light."""
    horizon = rng.uniform(0.46, 0.56)
    sky = draw_sky(rng, ("day", "dawn", "dusk", "pastel", "night"), horizon=horizon)
    period, phase = rng.uniform(2.2, 3.8), rng.uniform(0, 2 * math.pi)
    hue = rng.uniform(190, 255)
    lags = (0.0, 0.18, 0.36)
    waves = []
    for i, lag in enumerate(lags):
        deep = oklch(0.52 - 0.1 * i, 0.09, hue - 8 * i)
        waves.append(
            Wave(
                base=horizon + 0.13 + 0.155 * i,
                reach=0.12 + 0.06 * i,
                frequency=rng.uniform(4, 7) * (1 - 0.15 * i),
                speed=rng.choice((-1, 1)) * rng.uniform(0.8, 1.8),
                phase=rng.uniform(0, 2 * math.pi),
                lag_seconds=lag,
                colour=blend(oklch(0.68 - 0.07 * i, 0.1, hue - 20), sky.bottom, 0.3 - 0.12 * i),
                colour_below=blend(deep, sky.middle, 0.15),
            )
        )
    # The swell is highest half a turn after its lowest point; the nearest sheet lags behind it.
    first = (math.pi - phase) / (2 * math.pi) * period + lags[-1]
    crests = tuple(first + k * period for k in range(-1, math.ceil(seconds / period) + 2))
    return Surf(
        sky=sky,
        sun=(rng.uniform(0.2, 0.8), horizon * rng.uniform(0.35, 0.7), rng.uniform(0.05, 0.085)),
        sun_colour=blend(sky.light_colour, (1.0, 0.95, 0.85), 0.5),
        swell=Swell(low=0.0, high=1.0, period=period, phase=phase),
        sharpness=rng.uniform(1.2, 2.0),
        waves=tuple(waves),
        crests=crests,
    )
