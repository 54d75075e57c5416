"""What a report says of a cache as a whole: a summary that the page only has to lay out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from evaluation.report.compare import Comparison
from latents.cache.inspect import CacheSummary
from latents.cache.reader import CachedClip, CachedLevel
from pipeline.recorded import Recorded
from pipeline.scenes.catalogue import SCENE_LABELS

EXAMPLES = 3
"""Clips named for each cause of quarantine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedClip:
    """A clip of the page: which it is, and how it compares."""

    clip: str
    source: str
    """URI, or digest."""
    label: str | None
    start_seconds: float
    absence: str | None
    """Why the clip itself is not shown."""
    comparison: Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Clips and sources that were given up for the same reason."""

    error_class: str
    stage: str
    count: int
    examples: tuple[tuple[str, str], ...]
    """Source and message of the first few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """All that the page shows."""

    name: str
    """Of the cache's folder and the one it is in."""
    date: str
    """Start of the run that made the last commit, ISO 8601 in UTC."""
    kl_vae: str
    """Digest of the encoder's weights."""
    summary: CacheSummary
    durations_seconds: tuple[float, ...]
    loudness_dbfs: tuple[float, ...]
    raw_bytes: int
    """Pictures as uint8 RGB and sound as one channel of 16 bits at its own rate, decoded."""
    latent_bytes: int
    clips: tuple[ComparedClip, ...]
    causes: tuple[Cause, ...]

    @property
    def mean_psnr_db(self) -> float | None:
        """Over the clips that could be compared."""
        return mean_of(clip.comparison.psnr_db for clip in self.clips)

    @property
    def mean_mel_error_db(self) -> float | None:
        """Over the clips that could be compared."""
        return mean_of(clip.comparison.mel_error_db for clip in self.clips)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None where none is."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def choose_evenly(clips: Sequence[CachedClip], num_clips: int) -> tuple[CachedClip, ...]:
    """``num_clips`` clips, or all there are, spread evenly over their order."""
    num_clips = min(num_clips, len(clips))
    return tuple(
        clips[(2 * index + 1) * len(clips) // (2 * num_clips)] for index in range(num_clips)
    )


def model_name(source: str) -> str:
    """What a model is called: ``tiny``, or its folder and the one that it is in."""
    return source if source == "tiny" else "/".join(Path(source).expanduser().resolve().parts[-2:])


def raw_bytes(level: CachedLevel, recorded: Recorded) -> int:
    """Bytes of the clips as decoded pictures (uint8 RGB) and mono sound (16 bits)."""
    total = 0
    for clip in level:
        row = clip.rows["kl.video"]
        num_frames = row.shape[0]
        total += num_frames * 3 * recorded.clip.size**2
        total += 2 * recorded.clip.num_samples(num_frames, row.sample_rate or 0)
    return total


def group_causes(events: Sequence[dict[str, Any]]) -> tuple[Cause, ...]:
    """Open quarantine events by error and stage, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for event in events:
        key = (event["error_class"], event["stage"])
        groups.setdefault(key, []).append((event["source"], event["message"]))
    causes = [
        Cause(error_class=error, stage=stage, count=len(group), examples=tuple(group[:EXAMPLES]))
        for (error, stage), group in groups.items()
    ]
    return tuple(sorted(causes, key=lambda cause: (-cause.count, cause.error_class)))


def scene_label(uri: str) -> str | None:
    """Class of a synthetic scene, from its URI or the name `synthesise` gave its file."""
    if uri.startswith("scenes:"):
        return SCENE_LABELS[int(uri.split(":")[2]) % len(SCENE_LABELS)]
    prefix, _, rest = PurePath(uri).stem.partition("_")
    number, _, label = rest.partition("_")
    is_scene = prefix == "clip" and number.isdigit() and label in SCENE_LABELS
    return label if is_scene else None
