"""Pictures through decord, the default backend, wherever its answer can be trusted.

decord (0.6.0, FFmpeg 4.1) pairs the n-th picture with the n-th packet time, and after a seek it
may start elsewhere than asked. So it reads from the start, only files in which every packet is
one picture, and only if its first picture is the one PyAV shows.

It does not tell that its decoder concealed damage, nor, before the end, that a picture was lost and
all later ones moved up. PyAV tells both, so it decodes along, without converting anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial

import decord
import numpy as np

from latents.clip import ClipSpec
from latents.errors import DecodeError
from pipeline.frames import fit_picture
from pipeline.packet_times import PacketTimes, packet_times
from pipeline.pyav_video import VideoProbe, no_call
from pipeline.pyav_video import read_pictures as read_by_pyav
from pipeline.segments import Frame, Picture, PicturesRefusedError

UNTIMED_FORMATS = frozenset({"avi", "mpeg", "mpegts"})
"""Containers without timestamps of their own, or in which a seek to the start misses it."""

EQUAL_FORMATS = frozenset(
    {
        *("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"),
        *("yuv411p", "yuva420p", "nv12", "gray", "gbrp", "rgb24", "bgr0"),
    }
)
"""Pixel formats whose colours are PyAV's to the bit, whatever the matrix, range and transfer; at
odd widths up to rounding. Not so with 10 bits and more, as in nearly all HDR: chroma is placed
otherwise there, with differences of up to 93 of 255 at edges."""

MAX_DIFFERENCE = 4.0
"""Mean absolute difference, of 255, between decord's and PyAV's first picture (they differ by
rounding, if at all)."""

MAX_SKIP = 64
"""Most pictures to pass over in one call. At the end of a damaged stream decord gives 128 empty
pictures and then waits for ever."""

_NO_RECOVERY = 1e-9
"""Share of pictures that decord may replace by a neighbour before it raises: none."""


def read_pictures(
    path: str,
    clip_spec: ClipSpec,
    *,
    probe: VideoProbe,
    source: str,
    on_progress: Callable[[], None] = no_call,
) -> Iterator[Picture]:
    """All pictures of a file in one pass from its start.

    Args:
        path: Local file.
        clip_spec: The frames' size and fit.
        probe: The same file's first picture, by PyAV.
        source: URI, for messages.
        on_progress: Called now and then while packets are listed.

    Raises:
        PicturesRefusedError: From the iterator, before or after some pictures, or from a picture's
            `render`; PyAV must be asked instead.
    """
    times = _trusted_times(path, probe, source, on_progress)
    reader = _Reader(path, clip_spec, probe)
    reader.check_times(times)
    if np.abs(reader.render(0).astype(np.int16) - probe.first_picture).mean() > MAX_DIFFERENCE:
        raise PicturesRefusedError("its first picture is not the one that PyAV decodes")
    witness = read_by_pyav(path, clip_spec, source=source)
    for index, (tick, duration) in enumerate(zip(times.ticks, times.durations, strict=True)):
        time = int(tick) * times.time_base - probe.first_time
        _confirm(witness, time)
        yield Picture(
            time=time,
            duration=int(duration) * times.time_base or None,
            render=partial(reader.render, index),
        )
    # To the very end, where pictures that were lost on the way come to light.
    reader.render(len(times.ticks) - 1)


def _confirm(witness: Iterator[Picture], time: Fraction) -> None:
    """Refuses unless the next picture of the witness is whole, and is that of this time."""
    try:
        seen = next(witness, None)
    except DecodeError as error:
        raise PicturesRefusedError(error.reason) from error
    if seen is None or seen.is_damaged or seen.time != time:
        raise PicturesRefusedError(f"its picture at {float(time):.2f} s is lost or damaged")


def _trusted_times(
    path: str, probe: VideoProbe, source: str, on_progress: Callable[[], None]
) -> PacketTimes:
    if probe.pixel_format not in EQUAL_FORMATS:
        raise PicturesRefusedError(f"its colours ({probe.pixel_format}) come out otherwise")
    if probe.container_format in UNTIMED_FORMATS:
        raise PicturesRefusedError(
            f"{probe.container_format} has no timestamps that it can seek by"
        )
    try:
        times = packet_times(path, source=source, on_progress=on_progress)
    except DecodeError as error:
        raise PicturesRefusedError(error.reason) from error
    if times is None or int(times.ticks[0]) * times.time_base != probe.first_time:
        raise PicturesRefusedError("its packets and its pictures do not match one to one")
    return times


class _Reader:
    """One decord reader, moved forwards only."""

    def __init__(self, path: str, clip_spec: ClipSpec, probe: VideoProbe) -> None:
        self._clip_spec, self._probe = clip_spec, probe
        self._position = 0
        self._last: tuple[int, Frame] | None = None
        with _refusals():
            self._video = decord.VideoReader(
                path, ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_RECOVERY
            )
            self._key_indices = np.asarray(self._video.get_key_indices())

    def check_times(self, times: PacketTimes) -> None:
        """Refuses a stream of which decord sees other packets than PyAV."""
        num_pictures = len(self._video)
        if num_pictures != len(times.ticks):
            raise PicturesRefusedError(f"{num_pictures} packets, but PyAV finds {len(times.ticks)}")
        with _refusals():
            seconds = self._video.get_frame_timestamp(range(num_pictures))[:, 0].astype(np.float64)
        wanted = (times.ticks - times.ticks[0]) * float(times.time_base)
        half_interval = wanted[-1] / max(1, num_pictures - 1) / 2
        # Not exact, because decord's are float32 and from the stream's stated start.
        if np.abs(seconds - seconds[0] - wanted).max() > half_interval:
            raise PicturesRefusedError("its packets have other times than PyAV finds")

    def render(self, index: int) -> Frame:
        """The frame for a picture; indices must not decrease from call to call."""
        if self._last is None or self._last[0] != index:
            with _refusals():
                self._pass_over(index - self._position)
                picture = self._video.next().asnumpy()
            self._position = index + 1
            frame = fit_picture(
                picture,
                size=self._clip_spec.size,
                fit=self._clip_spec.fit,
                pixel_aspect=self._probe.pixel_aspect,
            )
            self._last = (index, frame)
        return self._last[1]

    def _pass_over(self, num_pictures: int) -> None:
        """Decodes pictures without converting them."""
        # decord seeks instead of decoding when a key frame lies in what it is told to skip.
        stop = self._position + num_pictures
        first_key, last_key = np.searchsorted(self._key_indices, [self._position, stop], "right")
        if 0 < num_pictures <= MAX_SKIP and 0 < first_key == last_key:
            self._video.skip_frames(num_pictures)
        else:
            for _ in range(num_pictures):
                self._video.next()


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns decord's errors, and its early end, into a refusal."""
    try:
        yield
    except (
        decord.DECORDError,
        decord.DECORDLimitReachedError,
        AssertionError,
        RuntimeError,
        StopIteration,
        ValueError,
    ) as error:
        raise PicturesRefusedError(str(error)[-200:]) from error
