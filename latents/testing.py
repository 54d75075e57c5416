"""For tests: small caches of made-up latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, write_recipes, write_ref
from latents.cache.rows import LatentRow, QuarantineRow, SourceRow, rows_to_table
from latents.clip import ClipKey, WindowSpec
from latents.fields import FIELDS
from latents.recipe import Canonical, Recipe, sha256_hex
from latents.store.kinds import StoreName
from latents.store.protocol import StoredTensor
from latents.store.shard_writers import shard_writer_of

NUM_FRAMES = 8
"""Frames of a made-up clip; windows of 4 frames start at each of its first 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeClip:
    """Tensors of one clip of a source of its own."""

    key: ClipKey
    tensors: Mapping[str, NDArray[np.float16]]
    """``kl.video`` (8, 4, 2, 2) and ``kl.audio`` (5, 4, 2, 2), or of another level."""
    loudness_dbfs: float = -20.0
    """Of its sound, as its rows say."""


def fake_clips(num_clips: int, *, seed: int = 0) -> list[FakeClip]:
    """Clips whose tensors are a function of the seed and the clip's number."""
    return [_fake_clip(index, seed) for index in range(num_clips)]


def _fake_clip(index: int, seed: int) -> FakeClip:
    generator = np.random.default_rng([seed, index])
    shapes = {"kl.video": (NUM_FRAMES, 4, 2, 2), "kl.audio": (NUM_FRAMES - 3, 4, 2, 2)}
    return FakeClip(
        key=ClipKey(source_digest=sha256_hex(f"{seed} {index}".encode()), start_frame=0, fps=10),
        tensors={
            field: generator.normal(size=shape).astype(np.float16)
            for field, shape in shapes.items()
        },
    )


def perceptual_clips(
    num_clips: int,
    *,
    seed: int = 0,
    video: tuple[int, int, int] = (2, 4, 4),
    audio: tuple[int, int, int] = (2, 2, 2),
) -> list[FakeClip]:
    """Clips of the ``perceptual`` level, 5 windows each, of latents (channel, row, column).

    What a window sounds like tells how it looks: a video latent is the audio latent, enlarged, and
    some noise. Log-variances are -10. Both have as many channels.
    """
    return [_perceptual_clip(index, seed, video, audio) for index in range(num_clips)]


def _perceptual_clip(
    index: int, seed: int, video: tuple[int, int, int], audio: tuple[int, int, int]
) -> FakeClip:
    generator = np.random.default_rng([seed, index])
    num_windows = NUM_FRAMES - 3
    sound = generator.normal(size=(num_windows, *audio))
    factor = video[1] // audio[1]
    picture = sound.repeat(factor, axis=2).repeat(factor, axis=3)
    picture += generator.normal(scale=0.3, size=picture.shape)
    tensors = {
        field: np.concatenate([mean, np.full_like(mean, -10.0)], axis=1).astype(np.float16)
        for field, mean in (("perceptual.video", picture), ("perceptual.audio", sound))
    }
    digest = sha256_hex(f"perceptual {seed} {index}".encode())
    return FakeClip(key=ClipKey(source_digest=digest, start_frame=0, fps=10), tensors=tensors)


def perceptual_recipes(*, weights: str = "tiny") -> dict[str, Recipe]:
    """Recipes of the ``perceptual`` level, with those of the ``kl`` level above."""
    kl = fake_recipes()
    parents = {"video": (kl["kl.video"],), "audio": (kl["kl.audio"],)}
    return {
        f"perceptual.{sense}": Recipe(
            field=f"perceptual.{sense}",
            implementation=1,
            specification={"encoder": {"weights": weights}},
            parents=parents[sense],
        )
        for sense in ("video", "audio")
    }


def fake_recipes(*, weights: str = "tiny", stride: int = 1) -> dict[str, Recipe]:
    """Recipes of the ``kl`` level, with a ``clip`` recipe above each."""
    specification: dict[str, Canonical] = {
        "kl_vae": {"weights": weights},
        "window": {"frames": 4, "stride": stride},
    }
    return {
        f"kl.{sense}": Recipe(
            field=f"kl.{sense}",
            implementation=1,
            specification=specification,
            parents=(Recipe(field=f"clip.{sense}", implementation=1, specification={"fps": 10}),),
        )
        for sense in ("video", "audio")
    }


def make_cache(
    root: Path,
    *,
    num_clips: int = 3,
    seed: int = 0,
    clips_per_commit: int = 2,
    recipes: Mapping[str, Recipe] | None = None,
    clips: Sequence[FakeClip] | None = None,
    store: StoreName = "tar",
) -> CacheLayout:
    """A cache of `fake_clips`, or of others; ``refs/current`` is its last commit."""
    layout = create_cache(root)
    recipes = recipes or fake_recipes()
    clips = fake_clips(num_clips, seed=seed) if clips is None else clips
    for start in range(0, len(clips), clips_per_commit):
        commit_clips(layout, clips[start : start + clips_per_commit], recipes, store=store)
    digests = {field: recipe.digest for field, recipe in recipes.items()}
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=digests))
    return layout


def commit_clips(
    layout: CacheLayout,
    clips: Sequence[FakeClip],
    recipes: Mapping[str, Recipe],
    *,
    store: StoreName = "tar",
) -> None:
    """Writes clips into one shard and commits it."""
    write_recipes(layout, recipes.values())
    writer = shard_writer_of(store)(layout.storage)
    for clip in clips:
        writer.add(str(clip.key), clip.tensors)
    stored = writer.seal()
    rows = [
        fake_latent_row(clip, field, recipes[field], stored[str(clip.key), field])
        for clip in clips
        for field in clip.tensors
    ]
    sources = [fake_source_row(clip) for clip in clips]
    CommitLog(layout).append(
        {"latents": rows_to_table("latents", rows), "sources": rows_to_table("sources", sources)},
        {"started": "2026-01-01T00:00:00Z"},
    )


def fake_latent_row(clip: FakeClip, field: str, recipe: Recipe, stored: StoredTensor) -> LatentRow:
    """The row of a tensor, with its true sums."""
    mean, logvar = np.split(clip.tensors[field].astype(np.float64), 2, axis=1)
    axes = (0, 2, 3)
    by_window = FIELDS[field].has_row_per_window
    grid = WindowSpec(frames=4, stride=1).grid(0, NUM_FRAMES)
    return LatentRow(
        clip=str(clip.key),
        field=field,
        recipe=recipe.digest,
        source=clip.key.source_digest,
        segment=0,
        start_frame=clip.key.start_frame,
        fps=clip.key.fps,
        shard=stored.shard,
        offset=stored.offset,
        dtype=stored.dtype,
        shape=list(stored.shape),
        digest=stored.digest,
        crc32c=list(stored.crc32c),
        channel_count=mean.size // mean.shape[1],
        mean_sum=mean.sum(axis=axes).tolist(),
        square_sum=(mean**2 + np.exp(logvar)).sum(axis=axes).tolist(),
        window_frames=grid.frames if by_window else None,
        window_stride=grid.stride if by_window else None,
        window_first_frame=grid.first_frame if by_window else None,
        num_windows=grid.num_windows if by_window else None,
        sample_rate=44100,
        loudness_dbfs=clip.loudness_dbfs,
        sound_first_frame=0,
        sound_stop_frame=NUM_FRAMES,
        device="cpu",
        versions="",
        encode_seconds=0.0,
        tolerance=1e-3,
    )


def fake_source_row(clip: FakeClip) -> SourceRow:
    """The record of a clip's source."""
    digest = clip.key.source_digest
    return SourceRow(
        uri=f"file:///{digest[:8]}.mp4",
        size=1000,
        mtime_ns=0,
        etag="",
        digest=digest,
        segmentation=sha256_hex(b"segmentation"),
        num_segments=1,
    )


def quarantine_table(
    source_digest: str, *, source: str = "file:///bad.mp4", segment: int | None = None
) -> pa.Table:
    """One quarantine event."""
    row = QuarantineRow(
        event="rejected",
        source=source,
        source_digest=source_digest,
        segment=segment,
        stage="decode",
        recipe=sha256_hex(b"admission"),
        error_class="DecodeError",
        message="no video stream",
        attempts=1,
        versions="",
    )
    return rows_to_table("quarantine", [row])
