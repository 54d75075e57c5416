"""A pendulum that knocks on a block at each end of its swing, one higher than the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch, vivid
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, attack, struck

WOOD = ((1.0, 1.0), (2.8, 0.4), (5.2, 0.15))
"""Partials of a wooden block: ratio to the lowest, amplitude."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pendulum:
    """A heavy bob that knocks on a block at each end of its swing."""

    wall: Sky
    pivot: tuple[float, float]
    length: float
    amplitude: float
    """Greatest angle, radians."""
    period: float
    phase: float
    """Time at which the bob is at its right end."""
    bob_radius: float
    bob_colour: Rgb
    rod_colour: Rgb
    block_colours: tuple[Rgb, Rgb]
    block_hz: tuple[float, float]
    """Pitch of the right and the left block."""
    knocks: tuple[float, ...]
    """Times at which the bob is at an end."""

    def bob(self, time_seconds: float) -> tuple[float, float]:
        """Centre of the bob."""
        return self._hang(self._angle(time_seconds), self.length)

    def paint_backdrop(self, canvas: Canvas) -> None:
        """The wall."""
        self.wall.paint(canvas)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Shadow on the wall, blocks, rod and bob."""
        x, y = self.bob(time_seconds)
        canvas.ellipse(
            x + 0.05,
            y + 0.07,
            (self.bob_radius, self.bob_radius),
            (0.05, 0.05, 0.1),
            opacity=0.25,
            softness=self.bob_radius * 0.9,
        )
        for side in range(2):
            self._paint_block(canvas, side, time_seconds)
        canvas.segment(self.pivot, (x, y), 0.011, self.rod_colour)
        canvas.ball(*self.pivot, (0.03, 0.03), self.rod_colour)
        canvas.ball(x, y, (self.bob_radius, self.bob_radius), self.bob_colour)

    def add_sound(self, mix: Mix) -> None:
        """A wooden knock at each end, one block higher than the other."""
        times = mix.grain_times(0.6)
        for i, time in enumerate(self.knocks):
            side = i % 2
            grain = struck(times, self.block_hz[side], 0.12, WOOD)
            click = mix.rng.standard_normal(len(times)) * np.exp(-times / 0.003)
            grain += 0.4 * click * attack(times, 0.0005)
            mix.place(grain, time, gain=0.6, pan=self.bob(time)[0])

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every knock."""
        return tuple(AudioVisualEvent(time_seconds=time, kind="knock") for time in self.knocks)

    def _angle(self, time_seconds: float) -> float:
        turn = 2 * math.pi * (time_seconds - self.phase) / self.period
        return self.amplitude * math.cos(turn)

    def _hang(self, angle: float, length: float) -> tuple[float, float]:
        return (
            self.pivot[0] + length * math.sin(angle),
            self.pivot[1] + length * math.cos(angle),
        )

    def _paint_block(self, canvas: Canvas, side: int, time_seconds: float) -> None:
        """The block that is knocked at, with the light of its last knock."""
        sign = 1 if side == 0 else -1
        x, y = self._hang(sign * self.amplitude, self.length)
        x += sign * (self.bob_radius + 0.05)
        half_period = self.period / 2
        knocked = self.phase + side * half_period
        since = (time_seconds - knocked) % self.period
        light = math.exp(-since / 0.16)
        colour = blend(self.block_colours[side], (1.0, 0.98, 0.85), 0.75 * light)
        below = blend(self.block_colours[side], (0.1, 0.05, 0.1), 0.3 * (1 - light))
        canvas.glow(x, y, 0.3, self.block_colours[side], 0.55 * light)
        canvas.box(
            x + sign * 0.012 * light, y, (0.045, 0.11), colour, colour_below=below, corner=0.03
        )


def draw_pendulum(rng: np.random.Generator, seconds: float) -> Pendulum:
    """A pendulum of random length, swing, tempo and colours."""
    hue = rng.uniform(0, 360)
    period = rng.uniform(0.9, 2.0)
    phase = rng.uniform(0, period)
    num_knocks = math.ceil(2 * seconds / period) + 2
    amplitude = rng.uniform(0.32, 0.52)
    low = 220 * 2 ** rng.uniform(0, 1.2)
    return Pendulum(
        wall=draw_sky(rng, ("pastel", "pastel", "lamplight", "dawn", "dusk")),
        pivot=(rng.uniform(0.47, 0.53), rng.uniform(0.06, 0.14)),
        length=rng.uniform(0.52, 0.66),
        amplitude=amplitude,
        period=period,
        phase=phase - period,
        bob_radius=rng.uniform(0.075, 0.11),
        bob_colour=vivid(hue, brightness=rng.uniform(-0.5, 1)),
        rod_colour=oklch(0.42, 0.04, hue + 40),
        block_colours=(vivid(hue + 130), vivid(hue + 220)),
        block_hz=(low * 1.5, low),
        knocks=tuple(phase - period + i * period / 2 for i in range(num_knocks + 2)),
    )
