"""From a source to a stream of clips: what a decoder is asked for, what it answers, and how.

A source is decoded once, from its start, without a seek and without belief in any stated duration.
`pipeline.isolation` runs this in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latents.clip import Clip, ClipKey, ClipSpec, WindowSpec, loudness_dbfs
from latents.errors import (
    ClipError,
    DecodeError,
    MissingSoundError,
    SilentSoundError,
    TooShortError,
)
from pipeline.scene_clips import SceneRef, render_scene
from pipeline.segments import (
    Segment,
    SoundTrack,
    cut_segments,
    report_progress,
    sound_span,
)
from pipeline.spans import Span

SILENCE_SAMPLE_RATE = 16000
"""Hz, of the silence that stands for a missing audio stream."""

Backend = Literal["decord", "pyav"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTask:
    """One source to decode."""

    uri: str
    """Absolute file path, or ``scenes:SEED:INDEX:SECONDS``; for messages and rows."""
    path: str | None
    """Local file; None for a scene."""
    scene: SceneRef | None
    digest: str
    """SHA-256, 64 hex digits, of the source's bytes, or of a scene's canonical description."""
    size: int = 0
    """Bytes of the file when it was hashed."""
    mtime_ns: int = 0
    """Time of its last change when it was hashed."""
    skip_segments: frozenset[int] = frozenset()
    """Segments encoded already: decoded past, not yielded."""
    fields: tuple[str, ...] = ()
    """What is to be made of each clip."""
    span: Span | None = None
    """The stretch of the file that is the source; None for all of it."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.scene is None):
            raise ValueError(f"{self.uri}: wanted either a path or a scene")
        if self.span is not None and self.scene is not None:
            raise ValueError(f"{self.uri}: a scene has no spans; give a length instead")


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundPolicy:
    """Which sources and segments are accepted for their sound."""

    missing: Literal["quarantine", "silence"] = "quarantine"
    """A source without an audio stream is rejected, or gets silence."""
    silent: Literal["keep", "skip"] = "keep"
    """A segment without audible sound is a clip all the same, or is rejected."""
    silent_below_dbfs: int = -80
    """Root mean square, in dB of full scale, under which a segment counts as silent."""

    def __post_init__(self) -> None:
        if self.missing not in ("quarantine", "silence"):
            raise ValueError(
                f"sound.missing is {self.missing!r}; it must be 'quarantine' or 'silence'"
            )
        if self.silent not in ("keep", "skip"):
            raise ValueError(f"sound.silent is {self.silent!r}; it must be 'keep' or 'skip'")
        if not -120 <= self.silent_below_dbfs <= 0:
            raise ValueError(
                f"sound.silent_below_dbfs is {self.silent_below_dbfs}; it must be between -120 "
                "and 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRejected:
    """A segment, or a whole source, that gives no clip."""

    segment: int | None
    """None for the whole source."""
    error: ClipError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDecoded:
    """The end of a source: always the last event."""

    num_segments: int
    """Segments seen, with those skipped and rejected."""


DecodeEvent = Clip | SegmentRejected | SourceDecoded


def decode_source(
    task: SourceTask,
    *,
    clip_spec: ClipSpec,
    window_spec: WindowSpec,
    sound: SoundPolicy,
    backend: Backend = "decord",
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[DecodeEvent]:
    """Clips of a source in order, what was rejected, and then `SourceDecoded`.

    A source's fault never raises. A segment with a damaged picture is rejected, and the ones after
    it are clips again, at their own presentation time. Where a source cannot be read any further,
    or its times start over, what was shown until then is cut as if it ended there, and the rest is
    one rejection.

    Args:
        task: The source.
        clip_spec: The frame grid and the cut.
        window_spec: A segment must hold one such window of picture and sound.
        sound: What is accepted.
        backend: Decodes the pictures first; PyAV takes over where decord is not installed or
            refuses.
        on_progress: Called once the source is open, and after each clip's length of pictures,
            whether or not an event comes of it; more often where many packets lie behind a picture.
    """
    judge = _Judge(task, clip_spec=clip_spec, window_spec=window_spec, sound=sound)
    num_segments = 0
    is_open = False
    try:
        with _open_media(task, clip_spec, backend, on_progress) as (segments, track):
            if track is None and sound.missing == "quarantine":
                raise MissingSoundError(task.uri, "it holds no audio stream that can be decoded")
            is_open = True
            on_progress()
            for segment in segments:
                yield from judge.judge(segment, track or _Silence())
                num_segments = segment.number + 1
        yield from judge.conclude()
    except ClipError as error:
        yield from judge.pending
        yield SegmentRejected(segment=num_segments if is_open else None, error=error)
        num_segments += is_open
    yield SourceDecoded(num_segments=num_segments)


class _Silence:
    """Stands for a missing audio stream."""

    sample_rate = SILENCE_SAMPLE_RATE

    def read(
        self, first_sample: int, num_samples: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return np.zeros((1, num_samples), np.float32), np.ones(num_samples, np.bool_)


class _Judge:
    """Joins segments with their sound and decides which of them are clips.

    Rejections for want of sound wait in `pending` until one segment is accepted or the source
    ends, because only then is it known whether they are the segments' fault or the source's.
    """

    def __init__(
        self,
        task: SourceTask,
        *,
        clip_spec: ClipSpec,
        window_spec: WindowSpec,
        sound: SoundPolicy,
    ) -> None:
        self._task, self._sound = task, sound
        self._clip_spec, self._window_spec = clip_spec, window_spec
        self._has_clip = False
        self._num_frames = self._num_sounding = 0
        self.pending: list[SegmentRejected] = []

    def judge(self, segment: Segment, track: SoundTrack) -> Iterator[DecodeEvent]:
        if segment.number in self._task.skip_segments:
            yield from self._release()
            return
        if segment.fault is not None:
            yield from self._release()
            error = DecodeError(self._task.uri, segment.fault)
            yield SegmentRejected(segment=segment.number, error=error)
            return
        clip = self._join(segment, track)
        num_sounding = clip.sound_stop_frame - clip.sound_first_frame
        self._num_frames += len(clip.frames)
        self._num_sounding += num_sounding
        if not self._window_spec.grid(clip.sound_first_frame, clip.sound_stop_frame).num_windows:
            too_short = TooShortError(self._task.uri, self._too_short(num_sounding))
            self.pending.append(SegmentRejected(segment=segment.number, error=too_short))
            yield from self._release() if self._has_clip else ()
            return
        yield from self._release()
        fault = self._fault(clip)
        yield clip if fault is None else SegmentRejected(segment=segment.number, error=fault)

    def conclude(self) -> Iterator[SegmentRejected]:
        """What is left to say at the end of the source."""
        if not self._has_clip and self._num_sounding < self._window_spec.frames:
            self.pending = [SegmentRejected(segment=None, error=self._source_fault())]
        yield from self.pending

    def _release(self) -> Iterator[SegmentRejected]:
        self._has_clip = True
        yield from self.pending
        self.pending = []

    def _join(self, segment: Segment, track: SoundTrack) -> Clip:
        rate, num_frames = track.sample_rate, len(segment.frames)
        waveform, present = track.read(
            self._clip_spec.first_sample(segment.start_frame, rate),
            self._clip_spec.num_samples(num_frames, rate),
        )
        span = sound_span(
            present, num_frames=num_frames, sample_rate=rate, clip_spec=self._clip_spec
        )
        return Clip(
            key=ClipKey(
                source_digest=self._task.digest,
                start_frame=segment.start_frame,
                fps=self._clip_spec.fps,
            ),
            source=self._task.uri,
            segment=segment.number,
            frames=segment.frames,
            waveform=waveform,
            sample_rate=rate,
            sound_first_frame=span.start if span else 0,
            sound_stop_frame=span.stop if span else 0,
        )

    def _fault(self, clip: Clip) -> ClipError | None:
        if not np.isfinite(clip.waveform).all():
            return DecodeError(self._task.uri, "its sound holds values that are not finite")
        loudness = loudness_dbfs(clip.waveform)
        if self._sound.silent == "skip" and loudness < self._sound.silent_below_dbfs:
            return SilentSoundError(
                self._task.uri,
                f"its sound has {loudness:.0f} dBFS, under the {self._sound.silent_below_dbfs} of "
                "sound.silent_below_dbfs",
            )
        return None

    def _source_fault(self) -> ClipError:
        if not self._num_frames and self._task.span is not None:
            start = self._task.span.start_seconds
            return TooShortError(
                self._task.uri, f"its pictures end before the span begins, at {start} s"
            )
        if self._num_sounding or not self._num_frames:
            return TooShortError(self._task.uri, self._too_short(self._num_sounding))
        return MissingSoundError(
            self._task.uri, "its sound does not lie beside its pictures in time"
        )

    def _too_short(self, num_sounding: int) -> str:
        fps, window = self._clip_spec.fps, self._window_spec
        return (
            f"picture and sound lie side by side for {num_sounding / fps:.1f} s, {num_sounding} "
            f"frames at {fps} fps; a window is {window.frames} frames = {window.frames / fps:.1f} "
            f"s and begins on a multiple of {window.stride} frames"
        )


@contextmanager
def _open_media(
    task: SourceTask, clip_spec: ClipSpec, backend: Backend, on_progress: Callable[[], None]
) -> Iterator[tuple[Iterator[Segment], SoundTrack | None]]:
    """Segments, and sound counted from the first frame; None without an audio stream."""
    if task.scene is not None:
        frames, track = render_scene(task.scene, clip_spec)
        yield cut_segments(report_progress(frames, clip_spec, on_progress), clip_spec), track
        return
    # Scenes need neither av nor decord, so these are imported with the first file.
    from pipeline.video_clips import open_video

    assert task.path is not None
    with open_video(
        task.path,
        clip_spec,
        source=task.uri,
        backend=backend,
        on_progress=on_progress,
        span=task.span,
    ) as media:
        yield media
