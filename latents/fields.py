"""The graph of fields: what is stored, at which level, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["clip", "kl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One node of the graph, the unit of identity. Each clip has one tensor per field."""

    name: str
    level: Level
    parent: str | None
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
            parent=None,
            tensor="frames",
            axes="uint8 (frame, 3, height, width)",
        ),
        Field(
            name="clip.audio",
            level="clip",
            parent=None,
            tensor="waveform",
            axes="float32 (channel, sample), native rate",
        ),
        Field(
            name="kl.video",
            level="kl",
            parent="clip.video",
            tensor="moments",
            axes="float16 (frame, mean then logvar, height / 8, width / 8)",
        ),
        Field(
            name="kl.audio",
            level="kl",
            parent="clip.audio",
            tensor="moments",
            axes="float16 (window, mean then logvar, height / 8, width / 8)",
            has_row_per_window=True,
        ),
    )
}

LEVELS: dict[Level, tuple[str, str]] = {
    "clip": ("clip.video", "clip.audio"),
    "kl": ("kl.video", "kl.audio"),
}
