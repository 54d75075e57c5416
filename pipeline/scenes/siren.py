"""A siren over roofs: its hue is its pitch, its brightness the loudness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, Signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Siren:
    """A beacon over roofs; its hue is its pitch, its brightness the loudness."""

    sky: Sky
    roofs: tuple[tuple[float, float, float, Rgb], ...]
    """Centre, half width, top and colour of each house."""
    x: float
    y: float
    size: float
    low_hz: float
    octaves: float
    low_hue: float
    hue_span: float
    wail_seconds: float
    phase: float
    steps: bool
    """Two tones in turn instead of a wail."""
    rest_seconds: float
    """Silence after each two wails, 0 for none."""
    spin: float
    """Turns of the beam per second."""
    peaks: tuple[float, ...]
    """Times at which the tone is highest, or would be if it sounded."""

    def pitch(self, times: Signal) -> Signal:
        """Height of the tone at each time, 0 low to 1 high."""
        turn = 2 * math.pi * (times + self.phase) / self.wail_seconds
        wave = -np.cos(turn)
        if self.steps:
            wave = np.tanh(6 * wave) / math.tanh(6)
        return 0.5 + 0.5 * wave

    def level(self, times: Signal) -> Signal:
        """Loudness and brightness at each time, 0 to 1."""
        if self.rest_seconds == 0:
            return np.ones_like(times)
        sounding = 2 * self.wail_seconds
        within = (times + self.phase) % (sounding + self.rest_seconds)
        return np.clip(within / 0.08, 0, 1) * np.clip((sounding - within) / 0.12 + 1, 0, 1)

    def hue(self, time_seconds: float) -> float:
        """Hue of the light in degrees, low to high with the pitch."""
        return self.low_hue + self.hue_span * float(self.pitch(np.asarray(time_seconds)))

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Night sky and roofs."""
        self.sky.paint(canvas)
        for x, half_width, top, colour in self.roofs:
            height = 1.2 - top
            canvas.box(x, top + height / 2, (half_width, height / 2), colour, corner=0.015)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """The beam, the glow, the lamp on its mast."""
        level = float(self.level(np.asarray(time_seconds)))
        hue = self.hue(time_seconds)
        colour = oklch(0.66, 0.21, hue)
        self._paint_beam(canvas, time_seconds, colour, level)
        canvas.glow(self.x, self.y, 0.95, colour, 0.5 * level)
        canvas.glow(self.x, self.y, 0.38, colour, 0.75 * level)
        self._paint_lamp(canvas, colour, level)

    def add_sound(self, mix: Mix) -> None:
        """A rich tone that glides with the hue."""
        hz = self.low_hz * 2 ** (self.octaves * self.pitch(mix.times))
        cycle = 2 * math.pi * np.cumsum(hz) / mix.sample_rate
        tone = np.sin(cycle) + 0.45 * np.sin(2 * cycle) + 0.22 * np.sin(3 * cycle)
        mix.spread(tone, gain=0.2 * self.level(mix.times), pan=self.x)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every time the tone is highest."""
        heard = self.level(np.asarray(self.peaks)) > 0.5
        return tuple(
            AudioVisualEvent(time_seconds=time, kind="peak")
            for time, sounds in zip(self.peaks, heard, strict=True)
            if sounds
        )

    def _paint_beam(self, canvas: Canvas, time_seconds: float, colour: Rgb, level: float) -> None:
        """Two opposite soft wedges of light that turn about the lamp."""
        angle = 2 * math.pi * self.spin * time_seconds
        u, v = canvas.x[None, :] - self.x, canvas.y[:, None] - self.y
        away = u * u + v * v + np.float32(1e-4)
        along = u * math.cos(angle) + v * math.sin(angle)
        aligned = along * along / away
        beam = np.maximum(aligned - 0.7, 0) / np.float32(0.3)
        beam *= beam * np.maximum(1 - away, 0) * (0.6 * level)
        canvas.light(slice(None), slice(None), beam, colour)

    def _paint_lamp(self, canvas: Canvas, colour: Rgb, level: float) -> None:
        x, y, size = self.x, self.y, self.size
        dark = (0.07, 0.07, 0.1)
        canvas.box(x, (y + size + 1.1) / 2, (0.2 * size, (1.1 - y - size) / 2), dark)
        glass = blend(blend(colour, dark, 0.65), colour, level)
        canvas.box(
            x, y, (0.62 * size, size), glass, colour_below=blend(glass, dark, 0.25), corner=size
        )
        canvas.glow(x, y - 0.1 * size, 0.8 * size, (1, 1, 1), 0.85 * level)
        canvas.box(
            x,
            y + size,
            (0.95 * size, 0.24 * size),
            (0.2, 0.2, 0.26),
            colour_below=dark,
            corner=0.02,
        )


def draw_siren(rng: np.random.Generator, seconds: float) -> Siren:
    """A siren of random pitch, tempo and colours."""
    sky = draw_sky(rng, ("night", "dusk", "night"))
    wail = rng.uniform(0.9, 2.6)
    phase = rng.uniform(0, wail)
    steps = bool(rng.uniform() < 0.35)
    rest = float(rng.choice((0.0, 0.0, 0.7)))
    return Siren(
        sky=sky,
        roofs=_draw_roofs(rng, sky),
        x=rng.uniform(0.35, 0.65),
        y=rng.uniform(0.36, 0.52),
        size=rng.uniform(0.08, 0.12),
        low_hz=rng.uniform(300, 480),
        octaves=rng.uniform(0.9, 1.4),
        low_hue=rng.uniform(0, 360),
        hue_span=float(rng.choice((-1, 1))) * rng.uniform(110, 190),
        wail_seconds=wail,
        phase=phase,
        steps=steps,
        rest_seconds=rest,
        spin=float(rng.choice((-1, 1))) * rng.uniform(0.25, 0.6),
        peaks=tuple((k + 0.5) * wail - phase for k in range(math.ceil(seconds / wail) + 2)),
    )


def _draw_roofs(rng: np.random.Generator, sky: Sky) -> tuple[tuple[float, float, float, Rgb], ...]:
    roofs = []
    for i in range(6):
        colour = blend(sky.bottom, (0.05, 0.05, 0.1), rng.uniform(0.55, 0.8))
        roofs.append((-0.1 + 0.24 * i, rng.uniform(0.09, 0.14), rng.uniform(0.66, 0.82), colour))
    return tuple(roofs)
