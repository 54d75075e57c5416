"""A sounding scene: pictures and sound of one trajectory, at any size, fps and sample rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latents.clip import ClipSpec
from pipeline.scenes.canvas import Canvas
from pipeline.scenes.sound import Mix

RENDERER_VERSION: int = 1
"""Raised whenever the pictures or the sound of any scene change."""

AMBIENCE = 1e-3
"""Root mean square of the ever-present air: -60 dB of full scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioVisualEvent:
    """A moment that is both seen and heard."""

    time_seconds: float
    kind: str


class Subject(Protocol):
    """What a scene shows and sounds like: a trajectory, drawn and heard."""

    def paint_backdrop(self, canvas: Canvas) -> None:
        """Paint all that never changes."""
        ...

    def paint(self, canvas: Canvas, time_seconds: float) -> None:
        """Paint the moment on top of the backdrop."""
        ...

    def add_sound(self, mix: Mix) -> None:
        """Add the sound, from the trajectory that `paint` shows."""
        ...

    def events(self) -> tuple[AudioVisualEvent, ...]:
        """The moments that are seen and heard, in any order."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One sounding scene. The picture at a time depends on that time only."""

    label: str
    """Its class, one of `SCENE_LABELS`."""
    seed: int
    index: int
    seconds: float
    events: tuple[AudioVisualEvent, ...]
    """Moments that are seen and heard, within [0, seconds), ascending."""
    subject: Subject

    def frame(self, time_seconds: float, *, height: int, width: int) -> NDArray[np.uint8]:
        """The picture at a time within [0, seconds], RGB (height, width, 3), 0..255."""
        canvas = Canvas(height, width)
        self.subject.paint_backdrop(canvas)
        self.subject.paint(canvas, time_seconds)
        return canvas.to_pixels()

    def frames(self, *, fps: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures at i / fps for every i < ceil(seconds * fps), each (height, width, 3)."""
        backdrop = Canvas(height, width)
        self.subject.paint_backdrop(backdrop)
        for i in range(ClipSpec(fps=fps).num_frames(self.seconds)):
            canvas = backdrop.copy()
            self.subject.paint(canvas, i / fps)
            yield canvas.to_pixels()

    def waveform(self, sample_rate: int) -> NDArray[np.float32]:
        """The sound, (2, round(seconds * sample_rate)), in (-1, 1)."""
        rng = np.random.default_rng([self.seed, self.index, 1])
        mix = Mix(round(self.seconds * sample_rate), sample_rate, rng)
        for pan in (0.0, 1.0):
            mix.spread(mix.noise(60, 900), gain=AMBIENCE, pan=pan)
        self.subject.add_sound(mix)
        return mix.to_waveform()
