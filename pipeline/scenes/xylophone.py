"""A xylophone whose bars light up as they are struck; the shorter the bar, the higher."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.backdrop import Sky, draw_sky
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.colour import Rgb, blend, oklch, vivid
from pipeline.scenes.scene import AudioVisualEvent
from pipeline.scenes.sound import Mix, struck

BAR = ((1.0, 1.0), (3.93, 0.35), (9.2, 0.1))
"""Partials of a bar: ratio to the lowest, amplitude."""

PENTATONIC = (0, 2, 4, 7, 9)
"""Semitones of the scale; any of its tones sound well together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One stroke on a bar."""

    time_seconds: float
    bar: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Xylophone:
    """Bars that light up when the mallet strikes them; shorter bars are higher."""

    table: Sky
    bar_colours: tuple[Rgb, ...]
    bar_hz: tuple[float, ...]
    middle: float
    mallet_colour: Rgb
    notes: tuple[Note, ...]
    """Strokes, ascending, from before the scene until after it."""

    def bar_x(self, bar: int) -> float:
        """Centre of a bar."""
        return 0.08 + 0.84 * (bar + 0.5) / len(self.bar_hz)

    def mallet(self, time_seconds: float) -> tuple[float, float]:
        """Where the mallet's head is, and how high above the bars (0 when it strikes)."""
        last = bisect_right(self.notes, time_seconds, key=lambda note: note.time_seconds) - 1
        start, stop = self.notes[last], self.notes[last + 1]
        share = (time_seconds - start.time_seconds) / (stop.time_seconds - start.time_seconds)
        smooth = share * share * (3 - 2 * share)
        from_x, to_x = self.bar_x(start.bar), self.bar_x(stop.bar)
        lift = 0.22 * min(1.0, (stop.time_seconds - start.time_seconds) / 0.5)
        return from_x + (to_x - from_x) * smooth, lift * 4 * share * (1 - share)

    def paint_backdrop(self, canvas: Canvas) -> None:
        """The table and the two rails."""
        self.table.paint(canvas)
        num_bars = len(self.bar_hz)
        first, last = self.bar_x(0), self.bar_x(num_bars - 1)
        for sign in (-1, 1):
            ends = (0.5 * self._half_length(0), 0.5 * self._half_length(num_bars - 1))
            canvas.segment(
                (first - 0.05, self.middle + sign * ends[0]),
                (last + 0.05, self.middle + sign * ends[1]),
                0.018,
                blend(self.table.bottom, (0.12, 0.08, 0.1), 0.7),
            )

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Bars, lit by their last stroke, then the mallet and its shadow."""
        for bar in range(len(self.bar_hz)):
            self._paint_bar(canvas, bar, time_seconds)
        x, lift = self.mallet(time_seconds)
        y = self.middle + 0.02
        canvas.ellipse(
            x + 0.25 * lift,
            y + 0.03 + 0.35 * lift,
            (0.05, 0.045),
            (0.04, 0.03, 0.08),
            opacity=0.35 - 0.6 * lift,
            softness=0.05 + 0.15 * lift,
        )
        top = y - lift
        canvas.segment(
            (x, top), (x + 0.16, top + 0.42), 0.012, blend(self.mallet_colour, (1, 1, 1), 0.6)
        )
        canvas.ball(x, top, (0.05, 0.05), self.mallet_colour)

    def add_sound(self, mix: Mix) -> None:
        """A bar's tone at each stroke."""
        times = mix.grain_times(1.2)
        for note in self.notes:
            hz = self.bar_hz[note.bar]
            tone = struck(times, hz, 0.32 * (400 / hz) ** 0.5, BAR)
            mix.place(tone, note.time_seconds, gain=0.42, pan=self.bar_x(note.bar))

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """Every stroke."""
        return tuple(
            AudioVisualEvent(time_seconds=note.time_seconds, kind="stroke") for note in self.notes
        )

    def _half_length(self, bar: int) -> float:
        return 0.36 - 0.2 * bar / (len(self.bar_hz) - 1)

    def _paint_bar(self, canvas: Canvas, bar: int, time_seconds: float) -> None:
        light = 0.0
        for note in self.notes:
            if note.bar == bar and 0 <= time_seconds - note.time_seconds < 1.5:
                light = math.exp(-(time_seconds - note.time_seconds) / 0.22)
        x, half_width = self.bar_x(bar), 0.36 / len(self.bar_hz)
        half_length = self._half_length(bar)
        colour = self.bar_colours[bar]
        canvas.box(
            x + 0.012,
            self.middle + 0.02,
            (half_width, half_length),
            (0.05, 0.04, 0.08),
            corner=0.03,
            opacity=0.28,
            softness=0.03,
        )
        if light > 0.03:
            canvas.glow(x, self.middle, half_length + 0.1, colour, 0.5 * light)
        canvas.box(
            x,
            self.middle + 0.008 * light,
            (half_width, half_length),
            blend(blend(colour, (1, 1, 1), 0.12), (1, 1, 0.95), 0.65 * light),
            colour_below=blend(blend(colour, (0, 0, 0.1), 0.18), (1, 1, 0.95), 0.55 * light),
            corner=0.03,
        )


def draw_xylophone(rng: np.random.Generator, seconds: float) -> Xylophone:
    """A xylophone of five to seven bars and a random melody on it."""
    num_bars = int(rng.integers(5, 8))
    hue, span = rng.uniform(0, 360), rng.choice((140.0, 220.0, 300.0))
    root = 262 * 2 ** rng.uniform(-0.2, 0.5)
    semitones = [PENTATONIC[i % 5] + 12 * (i // 5) for i in range(num_bars)]
    return Xylophone(
        table=draw_sky(rng, ("pastel", "lamplight", "lamplight", "dawn", "night")),
        bar_colours=tuple(vivid(hue + float(span) * i / (num_bars - 1)) for i in range(num_bars)),
        bar_hz=tuple(float(root * 2 ** (steps / 12)) for steps in semitones),
        middle=rng.uniform(0.48, 0.56),
        mallet_colour=oklch(rng.choice((0.35, 0.62, 0.85)), 0.12, hue + 180),
        notes=_draw_melody(rng, num_bars, seconds),
    )


def _draw_melody(rng: np.random.Generator, num_bars: int, seconds: float) -> tuple[Note, ...]:
    """Strokes on an even beat with a few rests, wandering over the bars."""
    beat = rng.uniform(0.28, 0.5)
    bar = int(rng.integers(num_bars))
    notes = [Note(time_seconds=-rng.uniform(0.05, 1) * beat, bar=bar)]
    while notes[-1].time_seconds <= seconds + beat:
        step = int(rng.choice((-3, -2, -1, 1, 2, 3)))
        bar = bar + step if 0 <= bar + step < num_bars else bar - step
        bar = min(max(bar, 0), num_bars - 1)
        pause = beat * float(rng.choice((1, 1, 1, 2)))
        notes.append(Note(time_seconds=notes[-1].time_seconds + pause, bar=bar))
    return tuple(notes)
