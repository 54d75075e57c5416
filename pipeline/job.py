"""A job: what every worker of an engine needs to know, and how it comes by clips.

Nothing here imports torch, so that decoding workers stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout, find_cache
from latents.cache.reader import CachedClip, read_tensor
from latents.clip import Clip, ClipKey, loudness_dbfs
from latents.errors import ClipError
from pipeline.decode import SegmentRejected, SourceDecoded, SourceTask
from pipeline.fetched_files import FetchedFiles
from pipeline.isolation import DecodeLimits, IsolatedDecoder
from pipeline.settings import IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedClipTask:
    """A clip to make from fields that the cache holds."""

    uri: str
    digest: str
    """SHA-256 of the source's bytes."""
    clip: CachedClip
    """With the rows of the fields to read."""
    fields: tuple[str, ...]
    """What is to be made of it."""


Task = SourceTask | CachedClipTask


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTensors:
    """Tensors of one clip, decoded or from the cache: what its other fields are made from."""

    key: ClipKey
    source: str
    """URI, for messages."""
    segment: int
    sample_rate: int
    """Hz."""
    loudness_dbfs: float
    sound_first_frame: int
    sound_stop_frame: int
    tensors: Mapping[str, NDArray[Any]]
    """By field."""
    fields: tuple[str, ...]
    """What is to be made of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob:
    """The same for all tasks of a run."""

    settings: IngestSettings
    computed: frozenset[str]
    """Fields that some task has computed; what no task needs is not loaded."""
    device: str
    cache_url: str
    kl_vae: str
    """Digest of the weights whose recipes the latents get; a worker that loads others refuses."""
    latent_scale: LatentScale
    modal_encoders: tuple[str, str] | None
    """The same of the video and the audio encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentScale:
    """How KL latents are scaled for whoever reads them: ``(latent - shift) * factor``."""

    factor: float
    shift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceUnread:
    """A source whose file is gone or has other bytes by now; it may be back another time."""

    error: ClipError


ProducerEvent = ClipTensors | SegmentRejected | SourceUnread | SourceDecoded


class ClipProducer(Protocol):
    """Turns tasks into clips, one at a time. Used by one thread."""

    def produce(self, task: Task) -> Iterator[ProducerEvent]:
        """Clips and rejections of a task, then its end."""

    def close(self) -> None:
        """Releases processes and files."""


class DecodeClips:
    """Clips from sources, decoded in a child process.

    Args:
        settings: What is decoded how, and the limits.
        should_stop: Once true, decoding is left within a tenth of a second, and a source's events
            end without `SourceDecoded`.
    """

    def __init__(
        self, settings: IngestSettings, *, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        run = settings.run
        self._settings = settings
        self._files = FetchedFiles(should_stop=should_stop)
        self._decoder = IsolatedDecoder(
            limits=DecodeLimits(
                time_seconds=run.time_limit_seconds,
                memory_bytes=run.memory_limit_bytes,
                attempts=run.decode_attempts,
            ),
            should_stop=should_stop,
        )

    def produce(self, task: Task) -> Iterator[ProducerEvent]:
        """Decodes a source or renders a scene."""
        assert isinstance(task, SourceTask)
        try:
            local = self._files.localise(task)
        except ClipError as error:
            yield SourceUnread(error=error)
            yield SourceDecoded(num_segments=0)
            return
        if local is None:
            return
        for event in self._decoder.decode(
            local,
            clip_spec=self._settings.clip,
            window_spec=self._settings.window,
            sound=self._settings.sound,
            backend=self._settings.decode.backend,
        ):
            yield decoded_tensors(event, task.fields) if isinstance(event, Clip) else event

    def close(self) -> None:
        """Ends the child process and removes what was fetched."""
        self._decoder.close()
        self._files.close()


def decoded_tensors(clip: Clip, fields: tuple[str, ...]) -> ClipTensors:
    """A decoded clip as the tensors of the ``clip`` level."""
    return ClipTensors(
        key=clip.key,
        source=clip.source,
        segment=clip.segment,
        sample_rate=clip.sample_rate,
        loudness_dbfs=loudness_dbfs(clip.waveform),
        sound_first_frame=clip.sound_first_frame,
        sound_stop_frame=clip.sound_stop_frame,
        tensors={"clip.video": clip.frames, "clip.audio": clip.waveform},
        fields=fields,
    )


def whole_clip(tensors: ClipTensors) -> Clip:
    """Inverse of `decoded_tensors`, for tensors of the whole ``clip`` level."""
    return Clip(
        key=tensors.key,
        source=tensors.source,
        segment=tensors.segment,
        frames=tensors.tensors["clip.video"].astype(np.uint8, copy=False),
        waveform=tensors.tensors["clip.audio"].astype(np.float32, copy=False),
        sample_rate=tensors.sample_rate,
        sound_first_frame=tensors.sound_first_frame,
        sound_stop_frame=tensors.sound_stop_frame,
    )


class ReadCachedClips:
    """Clips from fields that the cache holds; no video is opened."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout

    def produce(self, task: Task) -> Iterator[ProducerEvent]:
        """Reads one clip; raises `DamagedError` where its bytes are not what the log says."""
        assert isinstance(task, CachedClipTask)
        # Of the sound where it is read: pictures may be older than today's way to place sound.
        rows = task.clip.rows
        row = rows.get("clip.audio") or rows.get("kl.audio") or next(iter(rows.values()))
        assert row.sample_rate is not None
        assert row.loudness_dbfs is not None
        assert row.sound_first_frame is not None
        assert row.sound_stop_frame is not None
        yield ClipTensors(
            key=ClipKey(source_digest=row.source, start_frame=row.start_frame, fps=row.fps),
            source=task.uri,
            segment=row.segment,
            sample_rate=row.sample_rate,
            loudness_dbfs=row.loudness_dbfs,
            sound_first_frame=row.sound_first_frame,
            sound_stop_frame=row.sound_stop_frame,
            tensors={
                field: read_tensor(self._layout, found) for field, found in task.clip.rows.items()
            },
            fields=task.fields,
        )
        yield SourceDecoded(num_segments=1)

    def close(self) -> None:
        """Nothing is held."""


class ProduceClips:
    """Clips of any task, each by the producer for its kind; ``should_stop`` as `DecodeClips`."""

    def __init__(self, job: EncodeJob, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._job = job
        self._should_stop = should_stop
        self._decoder: DecodeClips | None = None
        self._reader: ReadCachedClips | None = None

    def produce(self, task: Task) -> Iterator[ProducerEvent]:
        """Clips and rejections of a task, then its end."""
        if isinstance(task, SourceTask):
            self._decoder = self._decoder or DecodeClips(
                self._job.settings, should_stop=self._should_stop
            )
            yield from self._decoder.produce(task)
        else:
            self._reader = self._reader or ReadCachedClips(find_cache(self._job.cache_url))
            yield from self._reader.produce(task)

    def close(self) -> None:
        """Ends what was started."""
        if self._decoder is not None:
            self._decoder.close()
