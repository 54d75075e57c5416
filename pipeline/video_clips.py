"""Video files as sources of clips: pictures by decord or PyAV, sound by PyAV."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from typing import Literal

from latents.clip import ClipSpec
from pipeline import pyav_video
from pipeline.pyav_audio import PyavSound, open_sound
from pipeline.segments import (
    Picture,
    PicturesRefusedError,
    Segment,
    cut_segments,
    hold_pictures,
    report_progress,
)
from pipeline.spans import Span

_log = logging.getLogger(__name__)


@contextmanager
def open_video(
    path: str,
    clip_spec: ClipSpec,
    *,
    source: str,
    backend: Literal["decord", "pyav"],
    on_progress: Callable[[], None],
    span: Span | None = None,
) -> Iterator[tuple[Iterator[Segment], PyavSound | None]]:
    """Segments of a file, decoded as they are asked for, and its sound; None without a stream.

    Args:
        path: Local file.
        clip_spec: The frame grid and the cut.
        source: URI, for messages.
        backend: Decodes the pictures first. A span is left to PyAV, since decord reads a file to
            its end before it decodes anything.
        on_progress: Called after each clip's length of pictures, and now and then while packets are
            read of which nothing is shown.
        span: The stretch of the file where the frame grid and the sound begin and end. It is
            decoded from the file's start, since no seek is exact, and no further than its own end.

    Raises:
        DecodeError: The file cannot be opened, or no picture of it decoded. Also from the segments
            and from the sound, where the file cannot be read any further.
        MissingSoundError: There is an audio stream, but no sound in it.
    """

    def cut(pictures: Iterator[Picture]) -> Iterator[Segment]:
        frames = hold_pictures(pictures, clip_spec, source=source, span=span)
        return cut_segments(report_progress(frames, clip_spec, on_progress), clip_spec)

    probe = pyav_video.probe_video(path, clip_spec, source=source, on_progress=on_progress)
    start_time = probe.first_time + (Fraction(span.start_seconds) if span else 0)
    with open_sound(path, source=source, start_time=start_time) as sound:
        segments = cut(
            pyav_video.read_pictures(path, clip_spec, source=source, on_progress=on_progress)
        )
        if backend == "decord" and span is None and find_spec("decord") is not None:
            from pipeline import decord_video

            vouched = decord_video.read_pictures(
                path, clip_spec, probe=probe, source=source, on_progress=on_progress
            )
            segments = _unless_refused(cut(vouched), segments, source)
        yield segments, sound


def _unless_refused(
    first: Iterator[Segment], second: Iterator[Segment], source: str
) -> Iterator[Segment]:
    """Segments of the first reader and, once that refuses, the rest from the second.

    The second starts over, since a seek would not be exact. Nothing that the first had read of an
    unfinished segment is used.
    """
    num_segments = 0
    try:
        for segment in first:
            num_segments = segment.number + 1
            yield segment
    except PicturesRefusedError as refusal:
        _log.debug("%s: decord gave %d segments, then: %s", source, num_segments, refusal)
        yield from (segment for segment in second if segment.number >= num_segments)
