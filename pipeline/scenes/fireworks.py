"""Fireworks over hills: a bang as each flower opens, then the crackle of its glints."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.backdrop import Hills, Sky, draw_hills, draw_sky
from pipeline.scenes.canvas import Canvas, Floats
from pipeline.scenes.colour import Rgb, blend, oklch
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, attack, sweep

SPARK_SECONDS = 1.5
RISE_SECONDS = 0.6
TRAIL_SECONDS = (0.0, 0.03, 0.07, 0.12, 0.18, 0.25, 0.33)
"""How far behind each light of a spark's trail is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell:
    """One rocket: where and when it opens, and how its sparks fly."""

    opens: float
    x: float
    y: float
    reach: float
    """Radius of the open flower."""
    colour: Rgb
    tip_colour: Rgb
    angles: tuple[float, ...]
    pushes: tuple[float, ...]
    """Share of the reach that each spark flies."""
    crackles: tuple[tuple[float, float, float], ...]
    """Time after opening and place (in reaches) of each late glint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fireworks:
    """Rockets over hills; each bang is heard as the flower opens, larger ones deeper."""

    sky: Sky
    darkness: float
    hills: tuple[Hills, ...]
    shells: tuple[Shell, ...]

    def paint_backdrop(self, canvas: Canvas) -> None:
        """The night, dark enough for the lights to show."""
        self.sky.paint(canvas)
        canvas.tint((0.03, 0.03, 0.10), self.darkness)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Rising rockets, flowers and their light on the sky, hills in front."""
        for shell in self.shells:
            since = time_seconds - shell.opens
            if -RISE_SECONDS < since < 0:
                _paint_rise(canvas, shell, since)
            elif 0 <= since < SPARK_SECONDS:
                _paint_flower(canvas, shell, since)
        for hills in self.hills:
            hills.paint(canvas)

    def add_sound(self, mix: Mix) -> None:
        """A thump and a burst of noise at each opening, then the crackle of the glints."""
        times = mix.grain_times(0.9)
        click_times = mix.grain_times(0.03)
        for shell in self.shells:
            depth = 1.35 - 1.2 * shell.reach
            fall = 55 + 130 * depth * np.exp(-times / 0.07)
            thump = sweep(fall, mix.sample_rate) * np.exp(-times / 0.2)
            burst = mix.rng.standard_normal(len(times)) * np.exp(
                -times / (0.05 + 0.2 * shell.reach)
            )
            bang = (thump + 0.38 * burst) * attack(times, 0.002)
            mix.place(bang, shell.opens, gain=0.45 + 0.6 * shell.reach, pan=shell.x)
            for delay, away, _ in shell.crackles:
                click = mix.rng.standard_normal(len(click_times)) * np.exp(-click_times / 0.006)
                pan = shell.x + shell.reach * away
                mix.place(click, shell.opens + delay, gain=0.16, pan=pan)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every opening."""
        return tuple(
            AudioVisualEvent(time_seconds=shell.opens, kind="bang") for shell in self.shells
        )


def _paint_rise(canvas: Canvas, shell: Shell, since: float) -> None:
    """A dim light on its way up, slowing down."""
    steps = np.asarray([0.0, 0.05, 0.1], np.float32)
    share = np.clip((since - steps) / RISE_SECONDS, -1, 0).astype(np.float32)
    y = shell.y + (1.05 - shell.y) * share * share
    canvas.dots(
        np.full_like(share, shell.x),
        y,
        np.asarray([0.024, 0.018, 0.014], np.float32),
        np.asarray([0.7, 0.4, 0.2], np.float32),
        np.tile(np.asarray((1.0, 0.85, 0.6), np.float32), (3, 1)),
    )


def _paint_flower(canvas: Canvas, shell: Shell, since: float) -> None:
    """The flash, its light on the sky, and the sparks with their trails."""
    fade = 1 - since / SPARK_SECONDS
    canvas.glow(shell.x, shell.y, 0.3 + 1.6 * shell.reach, shell.colour, 0.5 * fade**2)
    canvas.glow(
        shell.x, shell.y, 0.22 + 0.3 * shell.reach, (1, 0.97, 0.9), 0.9 * math.exp(-since / 0.07)
    )
    angles = np.asarray(shell.angles, np.float32)
    pushes = np.asarray(shell.pushes, np.float32) * shell.reach
    for i, behind in enumerate(TRAIL_SECONDS):
        age = max(since - behind, 0.0)
        flown = 1 - math.exp(-age / 0.28)
        x = shell.x + pushes * flown * np.cos(angles)
        y = shell.y + pushes * flown * np.sin(angles) + 0.09 * age * age
        strength = np.full_like(
            angles, (0.95 - 0.13 * i) * min(1.0, 1.6 * fade, 0.35 + since / 0.2)
        )
        radius = np.full_like(angles, (0.030 - 0.003 * i) * (0.45 + 0.55 * fade))
        colour = blend(
            blend((1, 1, 0.95), shell.colour, min(1, since / 0.25)), shell.tip_colour, 1 - fade
        )
        canvas.dots(x, y, radius, strength, _repeat(colour, len(angles)))
    _paint_glints(canvas, shell, since)


def _paint_glints(canvas: Canvas, shell: Shell, since: float) -> None:
    glints = [glint for glint in shell.crackles if 0 <= since - glint[0] < 0.12]
    if glints:
        x = np.asarray([shell.x + shell.reach * away for _, away, _ in glints], np.float32)
        y = np.asarray([shell.y + shell.reach * down for _, _, down in glints], np.float32)
        light = np.asarray([1 - (since - delay) / 0.12 for delay, _, _ in glints], np.float32)
        radius = np.full_like(x, 0.035)
        canvas.dots(x, y, radius, light, _repeat((1.0, 0.95, 0.8), len(glints)))


def _repeat(colour: Rgb, num_dots: int) -> Floats:
    return np.tile(np.asarray(colour, np.float32), (num_dots, 1))


def draw_fireworks(rng: np.random.Generator, seconds: float) -> Fireworks:
    """A random display: a rocket every second or so."""
    sky = draw_sky(rng, ("night", "night", "dusk"))
    darkness = 0.15 + 0.8 * max(0.0, sky.bottom[0] - 0.45)
    hue = rng.uniform(0, 360)
    opens = rng.uniform(-0.6, 0.5)
    shells = []
    while opens < seconds + RISE_SECONDS:
        shells.append(_draw_shell(rng, float(opens), hue))
        opens += rng.uniform(0.75, 1.35)
    return Fireworks(
        sky=sky,
        darkness=darkness,
        hills=(_darken(draw_hills(rng, sky, base=0.9, nearness=0.9, hue=260)),),
        shells=tuple(shells),
    )


def _darken(hills: Hills) -> Hills:
    """The same hills as a near-black silhouette."""
    night = (0.02, 0.02, 0.06)
    return replace(
        hills,
        colour=blend(hills.colour, night, 0.8),
        colour_below=blend(hills.colour_below, night, 0.9),
    )


def _draw_shell(rng: np.random.Generator, opens: float, hue: float) -> Shell:
    num_sparks = int(rng.integers(16, 24))
    spin, hue = rng.uniform(0, 2 * math.pi), hue + float(rng.choice((0, 40, 150, 200)))
    inner = 0.55 if rng.uniform() < 0.5 else 0.85
    crackles = [
        (rng.uniform(0.55, 1.3), rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.9)) for _ in range(14)
    ]
    return Shell(
        opens=opens,
        x=rng.uniform(0.22, 0.78),
        y=rng.uniform(0.24, 0.46),
        reach=rng.uniform(0.16, 0.34),
        colour=oklch(0.72, 0.19, hue),
        tip_colour=oklch(0.6, 0.2, hue + rng.uniform(-50, 50)),
        angles=tuple(spin + 2 * math.pi * i / num_sparks for i in range(num_sparks)),
        pushes=tuple((1.0, inner)[i % 2] * rng.uniform(0.93, 1.05) for i in range(num_sparks)),
        crackles=tuple(crackles) if rng.uniform() < 0.6 else (),
    )
