"""Deep verification: clips made again from their sources, compared with what is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout
from latents.cache.reader import ClipRows, read_tensor
from latents.cache.refs import require_ref
from latents.cache.rows import LatentRow
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.errors import ClipError
from latents.fields import FIELDS, to_compute
from latents.recipe import sha256_hex
from pipeline.decode import SoundPolicy
from pipeline.encode_stage import EncodeClip
from pipeline.job import decoded_tensors
from pipeline.load_stage import load_stage
from pipeline.originals import SourceClips, Unavailable
from pipeline.planned_job import encode_job
from pipeline.recipes import Encoders
from pipeline.settings import IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """One field of one clip, made again."""

    clip: str
    source: str
    """URI."""
    field: str
    distance: float | None
    """Relative L2 distance of what was made now from what is stored; None where none was made."""
    tolerance: float
    """Largest distance that counts as equal, as recorded with the row."""
    problem: str | None
    """What is wrong; None where they agree."""


def deep_verify(
    layout: CacheLayout,
    clips: SourceClips,
    encode: EncodeClip,
    *,
    num_clips: int,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> list[Recomputed]:
    """Makes clips of ``refs/current`` again from their sources and compares all their fields.

    Args:
        layout: The cache.
        clips: Decodes sources as they were decoded.
        encode: The stage with the encoders that made the latents.
        num_clips: How many; chosen by a hash of their keys, so always the same ones.
        on_clip: Called with (clips made, clips in all).

    Raises:
        CacheError: No ingest has completed.
        DamagedError: What is stored cannot be read.
    """
    ref = require_ref(layout, "current")
    rows = _stored(load_snapshot(layout, ref.commit), ref.recipes)
    keys = {key for of_field in rows.values() for key in of_field.clip_keys()}
    chosen = sorted(keys, key=lambda key: sha256_hex(key.encode()))[:num_clips]
    found: list[Recomputed] = []
    for number, key in enumerate(chosen, start=1):
        stored = {f: clip.rows[f] for f in rows if (clip := rows[f].find(key)) is not None}
        found.extend(_compare(layout, clips, encode, stored))
        on_clip(number, len(chosen))
    return found


def deep_verify_stage(
    settings: IngestSettings,
    encoders: Encoders,
    *,
    fields: Collection[str],
    device: str,
    cache: CacheLayout,
) -> EncodeClip:
    """The stage that makes some fields as a job with these settings would.

    Raises:
        ModelError: An encoder cannot be loaded, or is not the one on record.
    """
    at_hand = ("clip.video", "clip.audio")
    computed = frozenset(to_compute(fields, at_hand))
    return load_stage(
        encode_job(settings, encoders, computed=computed, device=device, cache_url=cache.url)
    )


def lenient(settings: IngestSettings) -> IngestSettings:
    """Settings under which every clip that was once accepted decodes again."""
    return replace(settings, sound=SoundPolicy(missing="silence", silent="keep"))


def _stored(snapshot: Snapshot, recipes: Mapping[str, str]) -> dict[str, ClipRows]:
    ordered = (field for field in FIELDS if field in recipes)
    return {field: ClipRows({field: snapshot.rows_of(recipes[field])}) for field in ordered}


def _compare(
    layout: CacheLayout, clips: SourceClips, encode: EncodeClip, stored: Mapping[str, LatentRow]
) -> Iterator[Recomputed]:
    first = next(iter(stored.values()))
    source = clips.name(first.source)
    original = clips.find(first.source, first.segment)
    made: dict[str, NDArray[Any]] = {}
    problem: str | None = None
    if isinstance(original, Unavailable):
        problem = f"it cannot be made again: {original.reason}"
    else:
        try:
            made = encode(decoded_tensors(original, tuple(stored))).tensors
        except ClipError as error:
            problem = f"it cannot be encoded again: {error.reason}"
    for field, row in stored.items():
        distance = None if problem else _distance(read_tensor(layout, row), made[field])
        yield Recomputed(
            clip=row.clip,
            source=source,
            field=field,
            distance=distance,
            tolerance=row.tolerance,
            problem=problem or _judge(distance, row.tolerance),
        )


def _distance(stored: NDArray[Any], made: NDArray[Any]) -> float:
    """Relative L2; infinite where the shapes differ."""
    if stored.shape != made.shape:
        return float("inf")
    stored, made = stored.astype(np.float64), made.astype(np.float64)
    scale = float(np.linalg.norm(stored.ravel()))
    error = float(np.linalg.norm((made - stored).ravel()))
    return error / scale if scale else error


def _judge(distance: float | None, tolerance: float) -> str | None:
    assert distance is not None
    if distance <= tolerance:
        return None
    return (
        f"made again it differs by {distance:.2e} (relative L2), more than the {tolerance:.0e} "
        "recorded: a library or a device gives other numbers than when it was encoded"
    )
