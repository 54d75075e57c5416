"""From pictures at any times to segments of a frame grid, and the sound that lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latents.clip import ClipSpec
from latents.errors import ClipError, DecodeError

Frame = NDArray[np.uint8]
"""RGB (3, size, size), 0..255."""

MAX_STEP_SECONDS = 60
"""Two pictures further apart than this, or in reverse by this much, are not one recording: a
broken timestamp would otherwise become hours of one frozen picture."""

MAX_MISSING_SOUND = Fraction(1, 2)
"""Share of a frame's interval that may be without sound when the frame counts as beside sound.
Sound rarely ends with the picture to the sample: codecs pad and prime, and rates do not divide."""


class PicturesRefusedError(Exception):
    """A reader cannot open a file, or cannot vouch for its pictures; another must be asked."""


class SoundTrack(Protocol):
    """Sound in order of time, counted in samples from the source's first picture."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    def read(
        self, first_sample: int, num_samples: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Sound (channel, sample), zero where there is none, and where there is some (sample).

        Calls are in order of time; sound before the last call's first sample may be gone.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of a source, which need not be rendered."""

    time: Fraction
    """Seconds from the source's first picture."""
    duration: Fraction | None
    """Seconds for which it is said to be shown; None where nothing is said."""
    render: Callable[[], Frame]
    """Called at most once, and before the next but one picture is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Consecutive frames of a source."""

    number: int
    start_frame: int
    frames: NDArray[np.uint8]
    """RGB (frame, 3, size, size), 0..255."""


def hold_pictures(
    pictures: Iterable[Picture], clip_spec: ClipSpec, *, source: str
) -> Iterator[Frame]:
    """The picture shown at each time of the frame grid (sample and hold).

    A picture is shown until the next one. The last is shown for its stated duration, or else for
    the mean interval. Pictures that do not come after the one before them are passed over.

    Raises:
        DecodeError: Times jump by more than `MAX_STEP_SECONDS`.
    """
    shown: Picture | None = None
    num_frames = num_pictures = 0
    for picture in pictures:
        if shown is not None:
            _check_step(shown.time, picture.time, source)
            if picture.time <= shown.time:
                continue
            missing = clip_spec.num_frames(picture.time) - num_frames
            if missing > 0:
                num_frames += missing
                yield from [shown.render()] * missing
        shown = picture
        num_pictures += 1
    if shown is not None:
        missing = clip_spec.num_frames(_end(shown, num_pictures, clip_spec)) - num_frames
        if missing > 0:
            yield from [shown.render()] * missing


def report_progress(
    frames: Iterable[Frame], clip_spec: ClipSpec, on_progress: Callable[[], None]
) -> Iterator[Frame]:
    """Passes frames on, with a call after each ``segment_frames`` of them."""
    for num_frames, frame in enumerate(frames, start=1):
        if num_frames % clip_spec.segment_frames == 0:
            on_progress()
        yield frame


def cut_segments(frames: Iterable[Frame], clip_spec: ClipSpec) -> Iterator[Segment]:
    """Segments of ``segment_frames``; a tail shorter than ``tail_frames`` joins the last one.

    No more than ``segment_frames + tail_frames`` frames are held at a time. When `frames` raises
    a `ClipError`, a segment that was complete by then is given before the error is passed on.
    """
    length = clip_spec.segment_frames
    held: list[Frame] = []
    number = 0

    def take(num_frames: int) -> Segment:
        segment = Segment(
            number=number, start_frame=number * length, frames=np.stack(held[:num_frames])
        )
        del held[:num_frames]
        return segment

    try:
        for frame in frames:
            held.append(frame)
            if len(held) == length + max(1, clip_spec.tail_frames):
                yield take(length)
                number += 1
    except ClipError:
        if len(held) >= length:
            yield take(length)
        raise
    if held:
        yield take(len(held))


def sound_span(
    present: NDArray[np.bool_], *, num_frames: int, sample_rate: int, clip_spec: ClipSpec
) -> range:
    """The longest run of frames beside sound, the first of equals; empty if there is none.

    Args:
        present: Where there is sound (sample), ``clip_spec.num_samples(num_frames, ...)`` long.
        num_frames: Frames beside those samples.
        sample_rate: Hz.
        clip_spec: The frame grid.
    """
    edges = np.array([clip_spec.first_sample(i, sample_rate) for i in range(num_frames + 1)])
    num_heard = np.diff(np.concatenate([[0], np.cumsum(present)])[edges])
    num_missing = np.diff(edges) - num_heard
    longest = range(0)
    start = 0
    for frame in range(num_frames):
        if num_missing[frame] > MAX_MISSING_SOUND * int(edges[frame + 1] - edges[frame]):
            start = frame + 1
        elif frame + 1 - start > len(longest):
            longest = range(start, frame + 1)
    return longest


def _check_step(before: Fraction, after: Fraction, source: str) -> None:
    if abs(after - before) > MAX_STEP_SECONDS:
        raise DecodeError(
            source,
            f"its timestamps jump from {float(before):.2f} s to {float(after):.2f} s; more than "
            f"{MAX_STEP_SECONDS} s between two pictures are taken for damage",
        )


def _end(last: Picture, num_pictures: int, clip_spec: ClipSpec) -> Fraction:
    if last.duration is not None and 0 < last.duration <= MAX_STEP_SECONDS:
        return last.time + last.duration
    if num_pictures > 1:
        return last.time * num_pictures / (num_pictures - 1)
    return clip_spec.frame_time(1)
