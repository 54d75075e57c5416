"""Bouncing balls: a thump at each impact, deep from a large ball and high from a small one."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch, vivid
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, attack, struck

RUBBER = ((1.0, 1.0), (1.9, 0.5), (3.3, 0.25))
"""Partials of the thump: ratio to the lowest, amplitude."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ball:
    """A ball that hops for ever; its size sets the pitch."""

    radius: float
    colour: Rgb
    impacts: tuple[float, ...]
    """Times at which it touches the floor, ascending."""
    floor: float
    centre: float
    sway: float
    sway_speed: float
    phase: float

    @property
    def hz(self) -> float:
        """Pitch of its impact: half the size, twice the pitch."""
        return 26.0 / self.radius

    def x(self, time_seconds: float) -> float:
        """Where it is above the floor, from left to right."""
        return self.centre + self.sway * math.sin(self.sway_speed * time_seconds + self.phase)

    def height(self, time_seconds: float) -> float:
        """Height of its underside above the floor: a parabola between two impacts."""
        last = bisect_right(self.impacts, time_seconds) - 1
        start, stop = self.impacts[last], self.impacts[last + 1]
        share = (time_seconds - start) / (stop - start)
        return hop_height(stop - start) * 4 * share * (1 - share)

    def since_impact(self, time_seconds: float) -> float:
        """Seconds since it last touched the floor."""
        return time_seconds - self.impacts[bisect_right(self.impacts, time_seconds) - 1]


def hop_height(hop_seconds: float) -> float:
    """Height reached in a hop: g T² / 8 under a gentle gravity."""
    return 4.4 * hop_seconds * hop_seconds / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BouncingBalls:
    """One or two balls on a floor that lights up where they land."""

    wall: Sky
    floor: float
    floor_colour: Rgb
    floor_colour_near: Rgb
    balls: tuple[Ball, ...]

    def paint_backdrop(self, canvas: Canvas) -> None:
        """A wall and a floor."""
        self.wall.paint(canvas)
        top = np.full_like(canvas.x, self.floor - 0.1)
        canvas.under(
            top, self.floor_colour, colour_below=self.floor_colour_near, depth=0.4, softness=0.06
        )

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Shadows, light of the impacts, then the balls."""
        for ball in self.balls:
            _paint_landing(canvas, ball, time_seconds)
        for ball in self.balls:
            height, since = ball.height(time_seconds), ball.since_impact(time_seconds)
            until = ball.impacts[bisect_right(ball.impacts, time_seconds)] - time_seconds
            squash = 0.22 * math.exp(-min(since, until) / 0.035)
            radii = ball.radius * (1 + 0.7 * squash), ball.radius * (1 - squash)
            canvas.ball(ball.x(time_seconds), ball.floor - height - radii[1], radii, ball.colour)

    def add_sound(self, mix: Mix) -> None:
        """A rubbery thump at each impact, louder after a higher hop."""
        for ball in self.balls:
            times = mix.grain_times(0.5)
            thump = struck(times, ball.hz, 0.11, RUBBER)
            click = mix.rng.standard_normal(len(times)) * np.exp(-times / 0.004)
            grain = thump + 0.5 * click * attack(times, 0.0005)
            hops = zip(ball.impacts, ball.impacts[1:], strict=False)
            for before, impact in hops:
                gain = 0.35 + 0.35 * min((impact - before) / 0.9, 1)
                mix.place(grain, impact, gain=gain, pan=ball.x(impact))

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every impact."""
        return tuple(
            AudioVisualEvent(time_seconds=time, kind="impact")
            for ball in self.balls
            for time in ball.impacts[1:]
        )


def _paint_landing(canvas: Canvas, ball: Ball, time_seconds: float) -> None:
    """The soft shadow, and the ring of light that an impact leaves."""
    x, height, since = ball.x(time_seconds), ball.height(time_seconds), 0.0
    lift = min(height / 0.6, 1)
    canvas.ellipse(
        x,
        ball.floor,
        (ball.radius * (1 + 0.3 * lift), ball.radius * (0.26 + 0.1 * lift)),
        (0.05, 0.05, 0.12),
        opacity=0.42 - 0.28 * lift,
        softness=ball.radius * (0.35 + 0.5 * lift),
    )
    since = ball.since_impact(time_seconds)
    if since < 0.45:
        landed, share = ball.x(time_seconds - since), since / 0.45
        reach = ball.radius * (1.1 + 1.5 * share)
        light = blend(ball.colour, (1, 1, 1), 0.55)
        canvas.ring(
            landed, ball.floor, (reach, reach * 0.3), 0.035, light, opacity=0.75 * (1 - share) ** 2
        )


def draw_bouncing_balls(rng: np.random.Generator, seconds: float) -> BouncingBalls:
    """Balls of random size, colour, place and liveliness."""
    floor = rng.uniform(0.78, 0.88)
    hue = rng.uniform(0, 360)
    num_balls = int(rng.integers(1, 3))
    balls = []
    for i in range(num_balls):
        radius = rng.uniform(0.075, 0.15) if num_balls == 1 else (0.065, 0.125)[i]
        lane = 0.5 if num_balls == 1 else (0.27, 0.73)[i]
        balls.append(
            Ball(
                radius=radius * rng.uniform(0.9, 1.15),
                colour=vivid(hue + 150 * i, brightness=rng.uniform(-0.6, 1)),
                impacts=_draw_impacts(rng, seconds),
                floor=floor + (0.03 * i),
                centre=lane + rng.uniform(-0.06, 0.06),
                sway=rng.uniform(0.05, 0.28) if num_balls == 1 else rng.uniform(0.02, 0.09),
                sway_speed=rng.uniform(0.6, 1.6),
                phase=rng.uniform(0, 2 * math.pi),
            )
        )
    wall = draw_sky(rng, ("pastel", "pastel", "day", "dusk", "lamplight"), horizon=floor)
    return BouncingBalls(
        wall=wall,
        floor=floor,
        floor_colour=blend(wall.bottom, oklch(0.5, 0.08, hue + 200), 0.35),
        floor_colour_near=blend(wall.bottom, oklch(0.35, 0.08, hue + 220), 0.65),
        balls=tuple(balls),
    )


def _draw_impacts(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """Hops around one length, some higher, from before the scene until after it."""
    hop = rng.uniform(0.55, 0.95)
    impacts = [-rng.uniform(0.05, hop)]
    while impacts[-1] <= seconds + 1.5:
        impacts.append(impacts[-1] + hop * rng.choice((0.7, 1.0, 1.0, 1.15)))
    return tuple(float(time) for time in impacts)
