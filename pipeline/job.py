"""A job: what every worker of an engine needs to know, and how it comes by clips.

Nothing here imports torch, so that decoding workers stay small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedClip, read_tensor
from latents.clip import Clip, ClipKey
from latents.errors import DecodeError
from latents.fields import Level
from pipeline.decode import DecodeEvent, SegmentRejected, SourceDecoded, SourceTask
from pipeline.isolation import IsolatedDecoder
from pipeline.settings import IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedClipTask:
    """A clip to take from the cache's clip level."""

    uri: str
    digest: str
    clip: CachedClip


Task = SourceTask | CachedClipTask


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob:
    """The same for all tasks of a run."""

    settings: IngestSettings
    levels: tuple[Level, ...]
    device: str
    cache_root: Path
    weights_digest: str
    """Of the encoder whose recipes the latents get; a worker that loads another one refuses."""
    reads_cached_clips: bool
    """Tasks are `CachedClipTask`, else `SourceTask`."""


class ClipProducer(Protocol):
    """Turns tasks into clips, one at a time. Used by one thread."""

    def produce(self, task: Task) -> Iterator[DecodeEvent]:
        """Clips and rejections of a task, then its end."""

    def close(self) -> None:
        """Releases processes and files."""


class DecodeClips:
    """Clips from sources, decoded in a child process."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._decoder = IsolatedDecoder(time_limit_seconds=settings.run.time_limit_seconds)

    def produce(self, task: Task) -> Iterator[DecodeEvent]:
        """Decodes a source or renders a scene."""
        assert isinstance(task, SourceTask)
        if _has_changed(task):
            # Its digest would name other bytes than those decoded.
            error = DecodeError(
                task.uri, "the file changed since it was hashed; ingest it again once it is whole"
            )
            yield SegmentRejected(segment=None, error=error)
            yield SourceDecoded(num_segments=0)
            return
        yield from self._decoder.decode(
            task,
            clip_spec=self._settings.clip,
            window_spec=self._settings.window,
            sound=self._settings.sound,
            backend=self._settings.decode.backend,
        )

    def close(self) -> None:
        """Ends the child process."""
        self._decoder.close()


def _has_changed(task: SourceTask) -> bool:
    if task.path is None:
        return False
    try:
        stat = os.stat(task.path)
    except OSError:
        return False  # The decoder says what is wrong with it.
    return (stat.st_size, stat.st_mtime_ns) != (task.size, task.mtime_ns)


class ReadCachedClips:
    """Clips from the cache's clip level; no video is opened."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout

    def produce(self, task: Task) -> Iterator[DecodeEvent]:
        """Reads one clip; raises `DamagedError` where its bytes are not what the log says."""
        assert isinstance(task, CachedClipTask)
        video, audio = task.clip.rows["clip.video"], task.clip.rows["clip.audio"]
        assert audio.sample_rate is not None
        assert audio.sound_first_frame is not None
        assert audio.sound_stop_frame is not None
        yield Clip(
            key=ClipKey(source_digest=video.source, start_frame=video.start_frame, fps=video.fps),
            source=task.uri,
            segment=video.segment,
            frames=read_tensor(self._layout, video).astype(np.uint8, copy=False),
            waveform=read_tensor(self._layout, audio).astype(np.float32, copy=False),
            sample_rate=audio.sample_rate,
            sound_first_frame=audio.sound_first_frame,
            sound_stop_frame=audio.sound_stop_frame,
        )
        yield SourceDecoded(num_segments=1)

    def close(self) -> None:
        """Nothing is held."""


def open_producer(job: EncodeJob) -> ClipProducer:
    """The producer for a job's tasks."""
    if job.reads_cached_clips:
        return ReadCachedClips(CacheLayout(job.cache_root))
    return DecodeClips(job.settings)
