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
from pipeline.spans import Span

Frame = NDArray[np.uint8]
"""RGB (3, size, size), 0..255."""

MAX_STEP_SECONDS = 60
"""Two pictures further apart than this, or in reverse by this much, are not one recording: a
broken timestamp would otherwise become hours of one frozen picture."""

MAX_STEP_BACK_SECONDS = Fraction(1, 2)
"""Decoders give single pictures out of order. Two in a row that are dated further back than this
are another recording that was appended, whose times start over."""

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
    is_damaged: bool = False
    """It, or one that it was predicted from, did not decode whole; it is not rendered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Consecutive frames of a source."""

    number: int
    start_frame: int
    frames: NDArray[np.uint8]
    """RGB (frame, 3, size, size), 0..255; none where there is a fault."""
    fault: str | None = None
    """Why these frames cannot be shown."""


def hold_pictures(
    pictures: Iterable[Picture], clip_spec: ClipSpec, *, source: str, span: Span | None = None
) -> Iterator[Frame | None]:
    """The picture shown at each time of the frame grid (sample and hold); None for a damaged one.

    A picture is shown until the next one. The last is shown for its stated duration, or else for
    the mean interval. A single picture that does not come after the one before it is passed over.

    Args:
        pictures: From the file's start. Once a span has ended, no more of them are asked for.
        clip_spec: The frame grid.
        source: URI, for messages.
        span: The stretch of the file on which the grid is laid; None for all of it.

    Raises:
        DecodeError: Times start over, or jump by more than `MAX_STEP_SECONDS`, or a damaged picture
            comes last that is the one of no frame. These errors, as any `ClipError` of the
            pictures, come after the frames that are shown before.
    """
    start = Fraction(span.start_seconds) if span else Fraction(0)
    stop = Fraction(span.stop_seconds) if span else None
    shown: Picture | None = None
    num_frames = num_pictures = 0

    def hold_until(time: Fraction) -> Iterator[Frame | None]:
        nonlocal num_frames
        end = time if stop is None else min(time, stop)
        missing = clip_spec.num_frames(end - start) - num_frames
        if shown is not None and missing > 0:
            num_frames += missing
            yield from [None if shown.is_damaged else shown.render()] * missing

    breaks_off: ClipError | None = None
    try:
        for picture in _in_order(pictures, source):
            yield from hold_until(picture.time)
            if stop is not None and picture.time >= stop:
                return
            shown = picture
            num_pictures += 1
    except ClipError as error:
        breaks_off = error
    if shown is not None:
        num_before = num_frames
        yield from hold_until(_end(shown, num_pictures, clip_spec))
        if shown.is_damaged and num_frames == num_before and breaks_off is None:
            seconds = float(shown.time - start)
            breaks_off = DecodeError(source, f"its pictures break off at {seconds:.2f} s, damaged")
    if breaks_off is not None:
        raise breaks_off


def report_progress(
    frames: Iterable[Frame | None], clip_spec: ClipSpec, on_progress: Callable[[], None]
) -> Iterator[Frame | None]:
    """Passes frames on, with a call after each ``segment_frames`` of them."""
    for num_frames, frame in enumerate(frames, start=1):
        if num_frames % clip_spec.segment_frames == 0:
            on_progress()
        yield frame


def cut_segments(frames: Iterable[Frame | None], clip_spec: ClipSpec) -> Iterator[Segment]:
    """Segments of ``segment_frames``; a tail shorter than ``tail_frames`` joins the last one.

    A segment with a damaged frame (None) has a fault and no frames. A tail is joined only if both
    are whole or both are damaged. No more than ``segment_frames + tail_frames`` frames are held at
    a time. When `frames` raises a `ClipError`, what was shown until then is cut as if the source
    ended there, before the error is passed on.
    """
    length = clip_spec.segment_frames
    held: list[Frame | None] = []
    number = 0

    def take(num_frames: int) -> Segment:
        nonlocal number
        segment = _segment(number, held[:num_frames], clip_spec)
        del held[:num_frames]
        number += 1
        return segment

    breaks_off: ClipError | None = None
    try:
        for frame in frames:
            held.append(frame)
            if len(held) == length + max(1, clip_spec.tail_frames):
                yield take(length)
    except ClipError as error:
        breaks_off = error
    if _is_damaged(held[:length]) != _is_damaged(held[length:]) and len(held) > length:
        yield take(length)
    if held:
        yield take(len(held))
    if breaks_off is not None:
        raise breaks_off


def sound_span(
    present: NDArray[np.bool_], *, num_frames: int, sample_rate: int, clip_spec: ClipSpec
) -> range:
    """The longest run of frames beside sound, the first of equals; empty if there is none.

    What lies beyond a hole in the sound is not used, however short the hole is: one frame without
    sound ends a run, and a clip has one run only.

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


def _segment(number: int, shown: list[Frame | None], clip_spec: ClipSpec) -> Segment:
    start_frame = number * clip_spec.segment_frames
    whole = [frame for frame in shown if frame is not None]
    if len(whole) == len(shown):
        return Segment(number=number, start_frame=start_frame, frames=np.stack(whole))
    damaged = [index for index, frame in enumerate(shown, start=start_frame) if frame is None]
    first, stop = damaged[0] / clip_spec.fps, (damaged[-1] + 1) / clip_spec.fps
    return Segment(
        number=number,
        start_frame=start_frame,
        frames=np.zeros((0, 3, clip_spec.size, clip_spec.size), np.uint8),
        fault=f"its pictures are damaged between {first:.1f} s and {stop:.1f} s",
    )


def _is_damaged(shown: list[Frame | None]) -> bool:
    return any(frame is None for frame in shown)


def _in_order(pictures: Iterable[Picture], source: str) -> Iterator[Picture]:
    """Leaves out pictures that do not come after the one before them."""
    last: Fraction | None = None
    num_far_back = 0
    for picture in pictures:
        if last is not None:
            _check_step(last, picture.time, source)
            if picture.time <= last:
                num_far_back += last - picture.time > MAX_STEP_BACK_SECONDS
                if num_far_back > 1:
                    raise _starts_over(last, picture.time, source)
                continue
        num_far_back = 0
        last = picture.time
        yield picture


def _starts_over(last: Fraction, again: Fraction, source: str) -> DecodeError:
    return DecodeError(
        source,
        f"its timestamps start over after {float(last):.2f} s, at {float(again):.2f} s; when what "
        "follows is to be shown cannot be known. Cut the file there and give the parts one by one",
    )


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
