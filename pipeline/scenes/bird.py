"""Birds on a branch: the beak is open as long as the chirp lasts, and a small bird sings high."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch, vivid
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class Chirp:
    """One note of a song."""

    time_seconds: float
    seconds: float
    rise: float
    """Octaves from its first to its last pitch, negative when it falls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bird:
    """A round bird that looks to one side."""

    x: float
    y: float
    """Where its feet are."""
    size: float
    """Radius of its body."""
    facing: float
    """1 to the right, -1 to the left."""
    colour: Rgb
    belly_colour: Rgb
    wing_colour: Rgb
    chirps: tuple[Chirp, ...]

    @property
    def hz(self) -> float:
        """Middle of its pitch: half the size, twice the pitch."""
        return 290.0 / self.size

    def openness(self, time_seconds: float) -> float:
        """How far the beak is open, 0 to 1: the envelope of the chirp."""
        for chirp in self.chirps:
            share = (time_seconds - chirp.time_seconds) / chirp.seconds
            if 0 <= share < 1:
                return float(_envelope(np.asarray(share)))
        return 0.0


def _envelope(share: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    """Quick rise, slow fall, over a chirp's share of time 0..1."""
    return np.minimum(share / 0.12, 1) * np.minimum((1 - share) / 0.45, 1) ** 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Birds:
    """One bird, or two that answer each other."""

    sky: Sky
    leaves: tuple[tuple[float, float, float, Rgb], ...]
    """x, y, radius and colour of each blurred leaf."""
    branch: tuple[tuple[float, float], tuple[float, float]]
    branch_colour: Rgb
    birds: tuple[Bird, ...]

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Sky, blurred leaves, branch."""
        self.sky.paint(canvas)
        for x, y, radius, colour in self.leaves:
            canvas.ellipse(x, y, (radius, radius), colour, opacity=0.55, softness=radius * 0.9)
        canvas.segment(*self.branch, 0.03, self.branch_colour)

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """The birds, stretched while they sing."""
        for bird in self.birds:
            for chirp in bird.chirps:
                since = time_seconds - chirp.time_seconds
                if 0 <= since < 0.5:
                    _paint_call(canvas, bird, since / 0.5)
            _paint_bird(canvas, bird, bird.openness(time_seconds), time_seconds)

    def add_sound(self, mix: Mix) -> None:
        """A whistled glide for each chirp."""
        for bird in self.birds:
            for chirp in bird.chirps:
                times = mix.grain_times(chirp.seconds)
                share = times / chirp.seconds
                glide = bird.hz * 2 ** (chirp.rise * (share - 0.5))
                note = sweep(glide, mix.sample_rate) + 0.2 * sweep(2 * glide, mix.sample_rate)
                envelope = _envelope(np.minimum(share, 1))
                mix.place(note * envelope, chirp.time_seconds, gain=0.42, pan=bird.x)

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """The beginning of every chirp."""
        return tuple(
            AudioVisualEvent(time_seconds=chirp.time_seconds, kind="chirp")
            for bird in self.birds
            for chirp in bird.chirps
        )


def _paint_call(canvas: Canvas, bird: Bird, share: float) -> None:
    """A ring of light that leaves the beak with the note."""
    x = bird.x + bird.facing * bird.size * 0.95
    reach = bird.size * (0.4 + 1.1 * share)
    y = bird.y - 1.75 * bird.size
    canvas.ring(x, y, (reach, reach), 0.03, (1, 1, 1), opacity=0.5 * (1 - share) ** 1.5)


def _paint_bird(canvas: Canvas, bird: Bird, openness: float, time_seconds: float) -> None:
    size, facing = bird.size, bird.facing
    breath = 0.02 * math.sin(2.4 * time_seconds + 9 * bird.x)
    stretch = 1 + breath + 0.09 * openness
    wide = size * (1 - 0.04 * openness)
    x, y = bird.x, bird.y - size * stretch * 0.95
    dark = blend(bird.wing_colour, (0.05, 0.05, 0.1), 0.4)
    canvas.segment(
        (x - facing * 0.7 * wide, y + 0.35 * size),
        (x - facing * 1.55 * wide, y + (0.62 - 0.3 * openness) * size),
        0.16 * size,
        dark,
    )
    canvas.ball(x, y, (wide, size * stretch), bird.colour)
    canvas.ellipse(
        x + facing * 0.3 * wide,
        y + 0.35 * size,
        (0.55 * wide, 0.55 * size),
        bird.belly_colour,
        softness=0.5 * size,
        opacity=0.9,
    )
    head_x = x + facing * 0.28 * wide
    head_y = y - 0.82 * size * stretch
    _paint_beak(canvas, head_x + facing * 0.5 * size, head_y, size, facing, openness)
    canvas.ball(head_x, head_y, (0.62 * size, 0.62 * size), bird.colour)
    flap = 0.25 + 0.35 * openness
    canvas.ellipse(
        x - facing * 0.35 * wide,
        y + 0.1 * size,
        (0.55 * size, 0.34 * size),
        bird.wing_colour,
        colour_below=dark,
        angle=-facing * flap,
        softness=0.02,
    )
    eye_x, eye_y = head_x + facing * 0.22 * size, head_y - 0.08 * size
    canvas.ellipse(eye_x, eye_y, (0.11 * size, 0.12 * size), (0.06, 0.05, 0.08))
    canvas.ellipse(eye_x + 0.03 * size, eye_y - 0.04 * size, (0.04 * size, 0.04 * size), (1, 1, 1))


def _paint_beak(
    canvas: Canvas, x: float, y: float, size: float, facing: float, openness: float
) -> None:
    """Two halves that part with the voice."""
    beak = (0.98, 0.68, 0.2)
    for sign in (-1, 1):
        angle = sign * 0.62 * openness
        tip = (x + facing * 0.5 * size * math.cos(angle), y + 0.5 * size * math.sin(angle))
        start = (x, y + sign * 0.06 * size)
        canvas.segment(
            start, tip, 0.075 * size, beak if sign < 0 else blend(beak, (0.6, 0.2, 0.1), 0.4)
        )


def draw_birds(rng: np.random.Generator, seconds: float) -> Birds:
    """One or two birds of random size, colour and song."""
    sky = draw_sky(rng, ("day", "dawn", "pastel", "pastel", "dusk"))
    hue, num_birds = rng.uniform(0, 360), int(rng.integers(1, 3))
    perch = rng.uniform(0.74, 0.82)
    slope = rng.uniform(-0.04, 0.04)
    leaf_hue = rng.uniform(90, 160)
    leaves = tuple(
        (
            rng.uniform(-0.1, 1.1),
            rng.uniform(0, 1),
            rng.uniform(0.08, 0.2),
            blend(
                oklch(rng.uniform(0.66, 0.82), 0.13, leaf_hue + rng.uniform(-30, 30)),
                sky.middle,
                0.35,
            ),
        )
        for _ in range(7)
    )
    songs = _draw_songs(rng, num_birds, seconds)
    birds = []
    for i, song in enumerate(songs):
        x = rng.uniform(0.4, 0.6) if num_birds == 1 else (0.27, 0.74)[i] + rng.uniform(-0.03, 0.03)
        size = rng.uniform(0.15, 0.2) if num_birds == 1 else rng.uniform(0.1, 0.15)
        facing = float(rng.choice((-1, 1))) if num_birds == 1 else (1.0, -1.0)[i]
        own_hue = hue + 140 * i
        birds.append(
            Bird(
                x=x,
                y=perch + slope * (x - 0.5) * 2 - 0.02,
                size=size,
                facing=facing,
                colour=vivid(own_hue, brightness=rng.uniform(-0.4, 1)),
                belly_colour=oklch(0.92, 0.06, own_hue + 50),
                wing_colour=oklch(0.5, 0.13, own_hue - 25),
                chirps=song,
            )
        )
    return Birds(
        sky=sky,
        leaves=leaves,
        branch=((-1.5, perch - 4 * slope), (2.5, perch + 4 * slope)),
        branch_colour=oklch(0.38, 0.05, 55),
        birds=tuple(birds),
    )


def _draw_songs(
    rng: np.random.Generator, num_birds: int, seconds: float
) -> tuple[tuple[Chirp, ...], ...]:
    """Phrases of two to four alike chirps, sung in turn."""
    songs: list[list[Chirp]] = [[] for _ in range(num_birds)]
    length = rng.uniform(0.16, 0.34)
    time = rng.uniform(-0.4, 0.3)
    singer = 0
    while time < seconds:
        rise = float(rng.choice((-1, 1))) * rng.uniform(0.3, 0.8)
        for _ in range(int(rng.integers(2, 5))):
            songs[singer].append(Chirp(time_seconds=float(time), seconds=length, rise=rise))
            time += length * rng.uniform(1.25, 1.5)
        time += rng.uniform(0.2, 0.6)
        singer = (singer + 1) % num_birds
    return tuple(tuple(song) for song in songs)
