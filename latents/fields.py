"""The graph of fields: what is stored, at which level, and what it is made from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Level = Literal["clip", "kl", "perceptual"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One node of the graph, the unit of identity. Each clip has one tensor per field."""

    name: str
    level: Level
    parents: tuple[str, ...]
    """The fields whose tensors it is made from."""
    tensor: str
    """Name of the tensor inside the stored safetensors."""
    axes: str
    """What the axes are. The first axis is the one that is read and checksummed by row."""
    has_row_per_window: bool = False
    """The first axis counts windows, so that the log records the window grid beside it."""


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field(
            name="clip.video",
            level="clip",
            parents=(),
            tensor="frames",
            axes="uint8 (frame, 3, height, width)",
        ),
        Field(
            name="clip.audio",
            level="clip",
            parents=(),
            tensor="waveform",
            axes="float32 (channel, sample), native rate",
        ),
        Field(
            name="kl.video",
            level="kl",
            parents=("clip.video",),
            tensor="moments",
            axes="float16 (frame, mean then logvar, height / 8, width / 8)",
        ),
        Field(
            name="kl.audio",
            level="kl",
            parents=("clip.audio",),
            tensor="moments",
            axes="float16 (window, mean then logvar, height / 8, width / 8)",
            has_row_per_window=True,
        ),
        Field(
            name="perceptual.video",
            level="perceptual",
            parents=("kl.video",),
            tensor="moments",
            axes="float16 (window, mean then logvar, height / 16, width / 16)",
            has_row_per_window=True,
        ),
        Field(
            name="perceptual.audio",
            level="perceptual",
            parents=("kl.audio",),
            tensor="moments",
            axes="float16 (window, mean then logvar, height / 32, width / 32)",
            has_row_per_window=True,
        ),
    )
}

LEVELS: dict[Level, tuple[str, str]] = {
    "clip": ("clip.video", "clip.audio"),
    "kl": ("kl.video", "kl.audio"),
    "perceptual": ("perceptual.video", "perceptual.audio"),
}


def to_compute(wanted: Collection[str], at_hand: Collection[str]) -> tuple[str, ...]:
    """The wanted fields and those of their ancestors that are not at hand, parents first."""
    needed = set(wanted) - set(at_hand)
    for field in reversed(FIELDS.values()):
        if field.name in needed:
            needed.update(set(field.parents) - set(at_hand))
    return tuple(name for name in FIELDS if name in needed)
