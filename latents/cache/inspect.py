"""What is in a cache, as counts, sums and digests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedLevel
from latents.cache.refs import Ref, read_ref
from latents.cache.snapshot import Snapshot, content_digest, load_snapshot
from latents.fields import LEVELS


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSummary:
    """One level of a snapshot."""

    num_sources: int
    num_clips: int
    num_windows: int
    content_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSummary:
    """One field of a snapshot."""

    recipe: str
    num_clips: int
    num_bytes: int
    mean: tuple[float, ...] | None
    """Mean of the posterior means, per channel."""
    std: tuple[float, ...] | None
    """Standard deviation of draws from the posteriors, per channel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSummary:
    """Answers `mmldm cache inspect`."""

    commit: int
    ref: str | None
    """Name of the ref whose recipes are summarised; None before a first ingest completed."""
    levels: dict[str, LevelSummary]
    fields: dict[str, FieldSummary]
    num_quarantined: int


def inspect_cache(layout: CacheLayout, *, ref: str = "current") -> CacheSummary:
    """Counts and digests of a ref, or of everything where no ingest has completed yet."""
    pinned = read_ref(layout, ref)
    snapshot = load_snapshot(layout, pinned.commit if pinned else None)
    recipes = dict((pinned or _latest_recipes(snapshot)).recipes)
    levels: dict[str, LevelSummary] = {}
    for level, names in LEVELS.items():
        if all(name in recipes for name in names):
            levels[level] = summarise_level(
                CachedLevel(layout, snapshot, level=level, recipes=recipes)
            )
    return CacheSummary(
        commit=snapshot.commit,
        ref=ref if pinned else None,
        levels=levels,
        fields={
            name: _summarise_field(snapshot, digest) for name, digest in sorted(recipes.items())
        },
        num_quarantined=len(snapshot.open_quarantine()),
    )


def summarise_level(level: CachedLevel) -> LevelSummary:
    """Counts and digest of an open level."""
    sources: set[str] = set()
    entries: list[dict[str, Any]] = []
    for clip in level:
        for row in clip.rows.values():
            sources.add(row.source)
            entries.append(
                {"clip": row.clip, "field": row.field, "shape": row.shape, "digest": row.digest}
            )
    return LevelSummary(
        num_sources=len(sources),
        num_clips=len(level),
        num_windows=level.num_windows,
        content_digest=content_digest(entries),
    )


def _summarise_field(snapshot: Snapshot, recipe: str) -> FieldSummary:
    columns = ["shape", "dtype", "channel_count", "mean_sum", "square_sum"]
    records = snapshot.rows_of(recipe).select(columns).to_pylist()
    mean, std = _channel_moments(records)
    return FieldSummary(
        recipe=recipe,
        num_clips=len(records),
        num_bytes=sum(_tensor_bytes(record) for record in records),
        mean=mean,
        std=std,
    )


def _channel_moments(
    records: list[dict[str, Any]],
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    records = [record for record in records if record["channel_count"]]
    if not records:
        return None, None
    count = sum(record["channel_count"] for record in records)
    mean = [sum(column) / count for column in zip(*(r["mean_sum"] for r in records), strict=True)]
    square = [
        sum(column) / count for column in zip(*(r["square_sum"] for r in records), strict=True)
    ]
    std = tuple(max(0.0, s - m * m) ** 0.5 for m, s in zip(mean, square, strict=True))
    return tuple(mean), std


def _tensor_bytes(record: dict[str, Any]) -> int:
    num_bytes: int = math.prod(record["shape"]) * int(np.dtype(record["dtype"]).itemsize)
    return num_bytes


def _latest_recipes(snapshot: Snapshot) -> Ref:
    """The last recipe of each field in the log, for a cache that has no ref yet."""
    pairs = zip(
        snapshot.latents["field"].to_pylist(), snapshot.latents["recipe"].to_pylist(), strict=True
    )
    return Ref(commit=snapshot.commit, recipes=dict(pairs))
