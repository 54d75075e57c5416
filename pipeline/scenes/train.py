"""A train that passes: louder when near, panned to where it is, its pitch falling as it goes by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Hills, Sky, draw_hills, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch, vivid
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, Signal, struck

CAR = 0.34
"""Length of a car and the gap behind it, in picture heights."""
NEARNESS = 0.3
"""Distance from the ear to the track, in picture heights."""
SOUND_SPEED = 4.0
"""Picture heights a second; slow, so that the change of pitch is plain to hear."""
STEEL = ((1.0, 1.0), (1.7, 0.6), (2.9, 0.4), (4.3, 0.2))


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """One pass of the train."""

    middle_time: float
    """When the middle of the train is at the middle of the picture."""
    velocity: float
    """Picture heights a second, negative to the left."""

    def centre(self, times: Signal) -> Signal:
        """Place of the train's middle at each time."""
        return 0.5 + self.velocity * (times - self.middle_time)


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """A train that passes to and fro before hills, clacking as each car passes the lamp."""

    sky: Sky
    hills: tuple[Hills, ...]
    ground: float
    ground_colour: Rgb
    ground_colour_near: Rgb
    num_cars: int
    car_height: float
    body_colour: Rgb
    roof_colour: Rgb
    window_colour: Rgb
    engine_hz: float
    lamp_x: float
    passages: tuple[Passage, ...]

    @property
    def length(self) -> float:
        """Length of the whole train."""
        return self.num_cars * CAR

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Sky, hills, ground, track and lamp post."""
        self.sky.paint(canvas)
        for hills in self.hills:
            hills.paint(canvas)
        top = np.full_like(canvas.x, self.ground)
        canvas.under(
            top, self.ground_colour, colour_below=self.ground_colour_near, depth=0.25, softness=0.02
        )
        rail = blend(self.ground_colour_near, (0.08, 0.08, 0.1), 0.6)
        canvas.box(0.5, self.ground + 0.035, (9.0, 0.009), rail)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """The cars, then the lamp that flashes as they clack past."""
        at = np.asarray(time_seconds)
        for passage in self.passages:
            centre = float(passage.centre(at))
            if abs(centre - 0.5) < self.length / 2 + 1.5:
                for car in range(self.num_cars):
                    x = centre + (car - (self.num_cars - 1) / 2) * CAR
                    leading = car == (self.num_cars - 1 if passage.velocity > 0 else 0)
                    self._paint_car(canvas, x, leading, math.copysign(1.0, passage.velocity))
        self._paint_lamp(canvas, time_seconds)

    def add_sound(self, mix: Mix) -> None:
        """Engine and wheels, with distance, pan and Doppler shift of the nearest point."""
        rumble, hiss = mix.noise(60, 350), mix.noise(500, 3000)
        for passage in self.passages:
            centre = passage.centre(mix.times)
            # Heard is the part of the train that is nearest to the middle of the picture.
            nearest = np.maximum(np.abs(centre - 0.5) - self.length / 2, 0)
            loudness = (NEARNESS**2 / (NEARNESS**2 + nearest**2)) ** 1.2
            pan = np.clip(centre, 0, 1)
            hz = self.engine_hz / (1 + self._recession(passage, centre) / SOUND_SPEED)
            cycle = 2 * math.pi * np.cumsum(hz) / mix.sample_rate
            engine = np.sum([np.sin(k * cycle) / k for k in range(1, 5)], axis=0)
            mix.spread(engine, gain=0.13 * loudness, pan=pan)
            mix.spread(rumble, gain=0.05 * loudness, pan=pan)
            mix.spread(hiss, gain=0.016 * loudness, pan=pan)
        clack = struck(mix.grain_times(0.25), 620, 0.035, STEEL)
        for time in self._clacks():
            mix.place(clack, time, gain=0.42, pan=self.lamp_x)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every clack at the lamp."""
        return tuple(AudioVisualEvent(time_seconds=time, kind="clack") for time in self._clacks())

    def _recession(self, passage: Passage, centre: Signal) -> Signal:
        """Speed away from the ear, of the train's middle."""
        away = centre - 0.5
        return passage.velocity * away / np.sqrt(away * away + NEARNESS**2)

    def _clacks(self) -> tuple[float, ...]:
        """Times at which the front of each car passes the lamp."""
        times = []
        for passage in self.passages:
            sign = math.copysign(1.0, passage.velocity)
            for car in range(self.num_cars):
                front = self.length / 2 - car * CAR
                offset = self.lamp_x - 0.5 - sign * front
                times.append(passage.middle_time + offset / passage.velocity)
        return tuple(times)

    def _paint_car(self, canvas: Canvas, x: float, leading: bool, sign: float) -> None:
        half_length, half_height = CAR * 0.47, self.car_height / 2
        y = self.ground - 0.01 - half_height
        canvas.ellipse(
            x,
            self.ground + 0.045,
            (half_length * 1.05, 0.025),
            (0.03, 0.03, 0.05),
            opacity=0.4,
            softness=0.03,
        )
        for wheel in (-0.6, -0.3, 0.3, 0.6):
            at = x + wheel * half_length
            canvas.ellipse(at, self.ground + 0.012, (0.024, 0.024), (0.12, 0.12, 0.15))
        colour = self.roof_colour if leading else self.body_colour
        canvas.box(
            x,
            y,
            (half_length, half_height),
            blend(colour, (1, 1, 1), 0.15),
            colour_below=blend(colour, (0, 0, 0.05), 0.3),
            corner=0.035,
        )
        for window in (-0.58, 0.0, 0.58):
            canvas.box(
                x + window * half_length,
                y - 0.22 * half_height,
                (0.2 * half_length, 0.3 * half_height),
                self.window_colour,
                corner=0.015,
            )
        if leading:
            front = x + sign * half_length
            canvas.glow(front + sign * 0.02, y + 0.4 * half_height, 0.16, (1, 0.92, 0.7), 0.7)

    def _paint_lamp(self, canvas: Canvas, time_seconds: float) -> None:
        since = min((time_seconds - t for t in self._clacks() if t <= time_seconds), default=9.0)
        light = math.exp(-since / 0.14)
        top = self.ground - self.car_height - 0.14
        canvas.segment(
            (self.lamp_x, top), (self.lamp_x, self.ground + 0.08), 0.011, (0.13, 0.13, 0.16)
        )
        canvas.glow(self.lamp_x, top, 0.3, (1.0, 0.75, 0.35), 0.75 * light)
        glass = blend((0.4, 0.25, 0.15), (1.0, 0.9, 0.6), light)
        canvas.ball(self.lamp_x, top, (0.042, 0.042), glass)


def draw_train(rng: np.random.Generator, seconds: float) -> Train:
    """A train of random length, speed and colours."""
    ground = rng.uniform(0.74, 0.82)
    sky = draw_sky(rng, ("day", "dawn", "dusk", "dusk", "night", "pastel"), horizon=ground)
    hue, green = rng.uniform(0, 360), rng.uniform(90, 170)
    num_cars = int(rng.integers(2, 5))
    earth = oklch(0.32 + 0.25 * sky.bottom[1], 0.06, green)
    return Train(
        sky=sky,
        hills=tuple(
            draw_hills(rng, sky, base=ground - 0.22 + 0.12 * i, nearness=0.2 + 0.35 * i, hue=green)
            for i in range(2)
        ),
        ground=ground,
        ground_colour=blend(earth, sky.bottom, 0.15),
        ground_colour_near=blend(earth, (0.05, 0.05, 0.1), 0.35),
        num_cars=num_cars,
        car_height=rng.uniform(0.17, 0.23),
        body_colour=vivid(hue, brightness=rng.uniform(-0.8, 0.4)),
        roof_colour=oklch(rng.uniform(0.4, 0.55), 0.14, hue + float(rng.choice((20, 160, 200)))),
        window_colour=oklch(0.92, 0.08, 95),
        engine_hz=rng.uniform(130, 230),
        lamp_x=rng.uniform(0.3, 0.7),
        passages=_draw_passages(rng, num_cars * CAR, seconds),
    )


def _draw_passages(rng: np.random.Generator, length: float, seconds: float) -> tuple[Passage, ...]:
    """Passes in turn from either side, with a short rest between them."""
    speed = rng.uniform(0.65, 1.0)
    sign = float(rng.choice((-1, 1)))
    pass_seconds = (length + 1.0) / speed
    middle = rng.uniform(-0.1, 0.35) * pass_seconds
    passages = []
    while middle - pass_seconds / 2 < seconds:
        passages.append(Passage(middle_time=middle, velocity=sign * speed))
        middle += pass_seconds + rng.uniform(0.3, 0.9)
        sign = -sign
    return tuple(passages)
