"""How long a plan will take and how much it will store, judged by what the cache has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.snapshot import Snapshot
from pipeline.job_plan import JobPlan, Wanted
from pipeline.settings import IngestSettings

_BYTES_PER_ROW = 700
"""Of the log, for one tensor of one clip: measured on caches of this format."""
_SAMPLE_RATE = 48_000
"""Hz: what most videos have, where the cache has none yet."""
_SOUND_BYTES = 2 * 4
"""Stereo float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will cost."""

    num_clips: int
    """Clips to make; sources that were never cut count as many as the others have on average."""
    num_bytes: int
    """To be stored."""
    encode_seconds: float | None
    """Of one worker; None where no clip of this kind has been timed in this cache."""
    free_bytes: int | None
    """Room there is; None where there is no telling."""

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.free_bytes is None or self.num_bytes < self.free_bytes


def estimate(
    plan: JobPlan,
    snapshot: Snapshot,
    wanted: Wanted,
    settings: IngestSettings,
    *,
    free_bytes: int | None,
) -> Estimate:
    """Judges a plan by the newest rows of the cache."""
    newest = snapshot.latents_files[-1].read() if snapshot.latents_files else None
    per_source = _clips_per_source(snapshot, wanted)
    per_clip = _clip_bytes(settings, newest)
    num_bytes = seconds = 0.0
    is_timed = True
    num_clips = 0.0 - len(plan.in_two_parts)
    timings = _timings(newest)
    for make, count in _work(plan, wanted, per_source):
        num_clips += count
        num_bytes += count * sum(per_clip[field] + _BYTES_PER_ROW for field in make)
        timed = timings.get(frozenset(make))
        is_timed = is_timed and timed is not None
        seconds += count * (timed or 0.0)
    return Estimate(
        num_clips=round(num_clips),
        num_bytes=round(num_bytes),
        encode_seconds=seconds if is_timed else None,
        free_bytes=free_bytes,
    )


def _work(
    plan: JobPlan, wanted: Wanted, per_source: float
) -> Iterable[tuple[tuple[str, ...], float]]:
    """Fields made together, and of how many clips."""
    for cached in plan.cached:
        yield cached.make, len(cached.clips)
    for task in plan.to_decode:
        yield task.fields, max(1.0, per_source - len(task.skip_segments))


def _clips_per_source(snapshot: Snapshot, wanted: Wanted) -> float:
    rows = snapshot.sources
    rows = rows.filter(pc.equal(rows["segmentation"], wanted.segmentation))
    counts = rows["num_segments"].to_numpy()
    return float(counts[counts > 0].mean()) if (counts > 0).any() else 1.0


def _clip_bytes(settings: IngestSettings, newest: pa.Table | None) -> Mapping[str, float]:
    """Bytes of a clip, by field; a full one where no row says how long they are here."""
    clip = settings.clip
    num_frames, sample_rate = clip.segment_frames, _SAMPLE_RATE
    if newest is not None:
        seconds = pc.mean(pc.divide(newest["sound_stop_frame"].cast(pa.float64()), newest["fps"]))
        num_frames = min(round(seconds.as_py() * clip.fps), num_frames + clip.tail_frames)
        sample_rate = round(pc.mean(newest["sample_rate"]).as_py())
    num_windows = settings.window.grid(0, num_frames).num_windows
    return {
        "clip.video": num_frames * 3 * clip.size**2,
        "clip.audio": clip.num_samples(num_frames, sample_rate) * _SOUND_BYTES,
        "kl.video": num_frames * 8 * (clip.size // 8) ** 2 * 2,
        "kl.audio": num_windows * 8 * 32**2 * 2,
        "perceptual.video": num_windows * 32 * (clip.size // 16) ** 2 * 2,
        "perceptual.audio": num_windows * 32 * 8**2 * 2,
    }


def _timings(newest: pa.Table | None) -> dict[frozenset[str], float]:
    """Mean seconds of a clip by the fields that were made together, in the newest rows."""
    if newest is None:
        return {}
    of_clip = (
        newest.select(["clip", "commit", "field", "encode_seconds"])
        .group_by(["clip", "commit"])
        .aggregate([("field", "list"), ("encode_seconds", "mean")])
    )
    seconds: dict[frozenset[str], list[float]] = {}
    columns = pa.table(of_clip).select(["field_list", "encode_seconds_mean"]).to_pylist()
    for record in columns:
        key = frozenset(record["field_list"])
        seconds.setdefault(key, []).append(record["encode_seconds_mean"])
    return {key: float(np.mean(values)) for key, values in seconds.items()}
