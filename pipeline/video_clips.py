"""Video files as sources of clips: pictures by decord or PyAV, sound by PyAV."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

_log = logging.getLogger(__name__)


@contextmanager
def open_video(
    path: str,
    clip_spec: ClipSpec,
    *,
    source: str,
    backend: Literal["decord", "pyav"],
    on_progress: Callable[[], None],
) -> Iterator[tuple[Iterator[Segment], PyavSound | None]]:
    """Segments of a file, decoded as they are asked for, and its sound; None without a stream.

    Raises:
        DecodeError: The file cannot be opened, or no picture of it decoded. Also from the segments
            and from the sound, where the file is damaged further on.
        MissingSoundError: There is an audio stream, but no sound in it.
    """

    def cut(pictures: Iterator[Picture]) -> Iterator[Segment]:
        frames = hold_pictures(pictures, clip_spec, source=source)
        return cut_segments(report_progress(frames, clip_spec, on_progress), clip_spec)

    probe = pyav_video.probe_video(path, clip_spec, source=source)
    with open_sound(path, source=source, start_time=probe.first_time) as sound:
        segments = cut(pyav_video.read_pictures(path, clip_spec, source=source))
        if backend == "decord" and find_spec("decord") is not None:
            from pipeline import decord_video

            vouched = decord_video.read_pictures(path, clip_spec, probe=probe, source=source)
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
