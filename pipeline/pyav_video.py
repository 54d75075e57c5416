"""Pictures through PyAV: exact from the first packet on, for every container and codec it knows.

Colours are converted by libswscale from the matrix and range the stream states; a stream that
states none is taken for BT.601 with limited range, as FFmpeg does. Values are those of swscale's
fast path, up to 2.5 of 255 below the exact ones. decord's differ from them only for odd widths.
HDR is not tone mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from latents.clip import ClipSpec
from latents.errors import DecodeError
from pipeline.frames import Orientation, fit_picture
from pipeline.segments import Frame, Picture

FALLBACK_RATE = Fraction(25)
"""Pictures per second of a stream with neither timestamps nor a rate."""

_NO_NETWORK = {"protocol_whitelist": "file,crypto,data"}
_VP8_SHOW_FRAME = 0x10


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoProbe:
    """What the first picture of a file tells."""

    container_format: str
    """FFmpeg's name, for example ``mov,mp4,m4a,3gp,3g2,mj2``."""
    first_time: Fraction
    """Presentation time of the first picture, in seconds: the start of the frame grid."""
    pixel_aspect: Fraction
    """Of the picture as displayed."""
    first_picture: Frame


@dataclass(frozen=True, kw_only=True, slots=True)
class PacketTimes:
    """When the packets of a video stream are to be shown, in order of time."""

    ticks: NDArray[np.int64]
    """Presentation times, ascending."""
    durations: NDArray[np.int64]
    """In ticks; zero where not stated."""
    time_base: Fraction
    """Seconds of a tick."""


@contextmanager
def open_file(path: str, *, source: str) -> Iterator[InputContainer]:
    """Opens a local file; a playlist cannot make it reach out to the network.

    Raises:
        DecodeError: The file is missing, empty, or of no known container format.
    """
    with decode_errors(source, f"it {_what_is_wrong(path)}"):
        # Real cameras write metadata that is not UTF-8; none of it is needed.
        container = av.open(path, metadata_errors="ignore", container_options=_NO_NETWORK)
    with container:
        yield container


@contextmanager
def decode_errors(source: str, what: str) -> Iterator[None]:
    """Turns FFmpeg's errors into `DecodeError`s that say what failed."""
    try:
        yield
    except av.FFmpegError as error:
        message = (error.strerror or str(error)).strip()[:200]
        raise DecodeError(source, f"{what} (FFmpeg: {message})") from error
    except IndexError as error:
        # PyAV looks up a packet's stream among those there were when it opened the file.
        raise DecodeError(source, f"{what}: another stream begins in the middle") from error


def probe_video(path: str, clip_spec: ClipSpec, *, source: str) -> VideoProbe:
    """Decodes the first picture of a file.

    Raises:
        DecodeError: There is no video stream, or no picture of it can be decoded.
    """
    with open_file(path, source=source) as container:
        stream = _video_stream(container, source)
        frame = next(_decode_frames(container, stream, source), None)
        if frame is None:
            raise DecodeError(source, "its video stream holds no picture that can be decoded")
        renderer = _Renderer(stream, clip_spec, source)
        return VideoProbe(
            container_format=container.format.name,
            first_time=_time(frame) or Fraction(0),
            pixel_aspect=renderer.pixel_aspect(_turn(frame)),
            first_picture=renderer.render(frame),
        )


def read_pictures(path: str, clip_spec: ClipSpec, *, source: str) -> Iterator[Picture]:
    """All pictures of a file in one pass from its start, in the order FFmpeg shows them.

    Damaged pictures at the very start are passed over: a recording may begin anywhere.

    Raises:
        DecodeError: From the iterator, at the first packet that cannot be read or decoded, or
            the first picture in which FFmpeg had to conceal damage.
    """
    with open_file(path, source=source) as container:
        stream = _video_stream(container, source)
        renderer = _Renderer(stream, clip_spec, source)
        interval = 1 / Fraction(stream.guessed_rate or FALLBACK_RATE)
        first_time: Fraction | None = None
        expected = Fraction(0)
        for frame in _decode_frames(container, stream, source):
            stated = _time(frame)
            if first_time is None:
                first_time = stated or Fraction(0)
            time = expected if stated is None else stated - first_time
            expected = time + interval
            yield Picture(
                time=time, duration=_duration(frame), render=partial(renderer.render, frame)
            )


def packet_times(path: str, *, source: str) -> PacketTimes | None:
    """Times of a video stream's packets, without decoding them.

    None where packets and pictures need not match one to one: a packet has no timestamp, the same
    as another's, or is marked as not to be shown.

    Raises:
        DecodeError: The file cannot be read to its end.
    """
    ticks: dict[int, int] = {}
    with (
        open_file(path, source=source) as container,
        decode_errors(source, "its packets cannot be listed"),
    ):
        stream = _video_stream(container, source)
        hides_frames = stream.codec_context.name == "vp8"
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            hidden = hides_frames and not bytes(packet)[0] & _VP8_SHOW_FRAME
            if packet.pts is None or packet.pts in ticks or packet.is_discard or hidden:
                return None
            ticks[packet.pts] = packet.duration or 0
        time_base = Fraction(stream.time_base or 1)
    ordered = sorted(ticks)
    return PacketTimes(
        ticks=np.array(ordered, np.int64),
        durations=np.array([ticks[tick] for tick in ordered], np.int64),
        time_base=time_base,
    )


class _Renderer:
    """Turns decoded pictures of one stream into frames."""

    def __init__(self, stream: VideoStream, clip_spec: ClipSpec, source: str) -> None:
        self._stored_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self._clip_spec, self._source = clip_spec, source
        self._reformatter = VideoReformatter()

    def pixel_aspect(self, orientation: Orientation) -> Fraction:
        return 1 / self._stored_aspect if orientation.transpose else self._stored_aspect

    def render(self, frame: VideoFrame) -> Frame:
        with decode_errors(self._source, f"{frame.format.name} cannot be turned into RGB"):
            rgb: Any = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        orientation = _turn(frame)
        return fit_picture(
            orientation.apply(rgb),
            size=self._clip_spec.size,
            fit=self._clip_spec.fit,
            pixel_aspect=self.pixel_aspect(orientation),
        )


def _decode_frames(
    container: InputContainer, stream: VideoStream, source: str
) -> Iterator[VideoFrame]:
    frames = container.decode(stream)
    since = 0.0
    num_frames = 0
    while True:
        with decode_errors(source, f"decoding breaks off after timestamp {since:.2f} s"):
            frame = next(frames, None)
        if frame is None:
            return
        since = frame.time or 0.0
        if not frame.is_corrupt:
            num_frames += 1
            yield frame
        elif num_frames:
            raise DecodeError(source, f"its picture at timestamp {since:.2f} s is damaged")


def _video_stream(container: InputContainer, source: str) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or _is_cover(stream):
        raise DecodeError(source, "it holds no video stream that can be decoded")
    stream.codec_context.thread_count = 1
    return stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _turn(frame: VideoFrame) -> Orientation:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return Orientation() if matrix is None else Orientation.from_display_matrix(bytes(matrix))


def _time(frame: VideoFrame) -> Fraction | None:
    if frame.pts is None or frame.time_base is None:
        return None
    return frame.pts * frame.time_base


def _duration(frame: VideoFrame) -> Fraction | None:
    if not frame.duration or frame.time_base is None:
        return None
    return frame.duration * frame.time_base


def _what_is_wrong(path: str) -> str:
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "cannot be opened as a video" if size else "is empty"
