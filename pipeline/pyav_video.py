"""Pictures through PyAV: exact from the first packet on, for every container and codec it knows.

Colours are converted by libswscale from the matrix and range the stream states; a stream that
states none is taken for BT.601 with limited range, as FFmpeg does. Values are those of swscale's
fast path, up to 2.5 of 255 below the exact ones.

HDR is not tone mapped: code values of PQ and HLG go through the stated matrix (BT.2020) like any
others, so that such pictures look flat and pale, and no two decoders need agree on a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from latents.clip import ClipSpec
from latents.errors import DecodeError
from pipeline.frames import Orientation, fit_picture
from pipeline.picture_damage import Decoded, Lost, from_first_whole, mark_damage
from pipeline.segments import Frame, Picture

FALLBACK_RATE = Fraction(25)
"""Pictures per second of a stream with neither timestamps nor a rate."""

PROGRESS_PACKETS = 256
"""Packets from one sign of life to the next, wherever packets are read."""

_NO_NETWORK = {"protocol_whitelist": "file,crypto,data"}


def no_call() -> None:
    """Stands for a sign of life that nobody waits for."""


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
    pixel_format: str
    """FFmpeg's name, for example ``yuv420p``."""


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


def probe_video(
    path: str, clip_spec: ClipSpec, *, source: str, on_progress: Callable[[], None] = no_call
) -> VideoProbe:
    """Decodes the first whole picture of a file.

    Raises:
        DecodeError: There is no video stream, or no picture of it can be decoded.
    """
    with open_file(path, source=source) as container:
        stream = video_stream(container, source=source, on_progress=on_progress)
        first = next(from_first_whole(_decode(container, stream, source, on_progress)), None)
        if not isinstance(first, Decoded):
            raise DecodeError(source, "its video stream holds no picture that can be decoded")
        renderer = _Renderer(stream, clip_spec, source)
        return VideoProbe(
            container_format=container.format.name,
            first_time=first.time or Fraction(0),
            pixel_aspect=renderer.pixel_aspect(_turn(first.frame)),
            first_picture=renderer.render(first.frame),
            pixel_format=first.frame.format.name,
        )


def read_pictures(
    path: str, clip_spec: ClipSpec, *, source: str, on_progress: Callable[[], None] = no_call
) -> Iterator[Picture]:
    """All pictures of a file in one pass from its start, in the order FFmpeg shows them.

    What is damaged at the very start is passed over. Later on decoding goes on past damage, and
    pictures are marked from there to the next key picture.

    Raises:
        DecodeError: From the iterator, where the file cannot be read any further.
    """
    with open_file(path, source=source) as container:
        stream = video_stream(container, source=source, on_progress=on_progress)
        yield from mark_damage(
            _decode(container, stream, source, on_progress),
            interval=1 / Fraction(stream.guessed_rate or FALLBACK_RATE),
            render=_Renderer(stream, clip_spec, source).render,
        )


def video_stream(
    container: InputContainer, *, source: str, on_progress: Callable[[], None] = no_call
) -> VideoStream:
    """The stream that a player would show, set to decode with one thread.

    It is the best one by FFmpeg's rules: the default track, then the one with more bits a second.
    Cover art is never taken for it: where the best has a single picture, it is the first stream in
    the file with more. Other angles and qualities in further streams are not looked at.

    Raises:
        DecodeError: There is none that can be decoded.
    """
    best = container.streams.best("video")
    streams = [
        stream
        for stream in container.streams.video
        # A stream of a codec that FFmpeg does not know has no context.
        if stream.codec_context is not None and not _is_cover(stream)
    ]
    if not streams:
        raise DecodeError(source, "it holds no video stream that can be decoded")
    streams.sort(key=lambda stream: stream is not best)
    if len(streams) > 1:
        indices = [stream.index for stream in streams]
        moving = _first_moving(container.name, indices, source, on_progress)
        streams = [stream for stream in streams if stream.index == moving]
    streams[0].codec_context.thread_count = 1
    return streams[0]


def read_packets(
    container: InputContainer, stream: VideoStream, on_progress: Callable[[], None]
) -> Iterator[Packet[VideoStream]]:
    """All packets of a stream, with a sign of life after each `PROGRESS_PACKETS`."""
    for num_packets, packet in enumerate(container.demux(stream), start=1):
        if num_packets % PROGRESS_PACKETS == 0:
            on_progress()
        yield packet


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


def _decode(
    container: InputContainer, stream: VideoStream, source: str, on_progress: Callable[[], None]
) -> Iterator[Decoded | Lost]:
    """What comes of each packet.

    Raises:
        DecodeError: Packets cannot be read any further; after all pictures of those before.
    """
    since = 0.0
    latest: Fraction | None = None
    breaks_off: Exception | None = None
    try:
        for packet in _packets_past_damage(container, stream, on_progress):
            if packet is not None:
                time = _seconds(packet.pts, packet.time_base)
                latest = max((t for t in (latest, time) if t is not None), default=None)
                since = float(time or since)
            for decoded in _decode_packet(stream, packet):
                yield Lost(latest=latest) if decoded is None else decoded
    except (av.FFmpegError, IndexError) as error:
        breaks_off = error
    # Pictures that were held back because others come before them.
    end: Packet[Any] = Packet()
    yield from filter(None, _decode_packet(stream, end))
    if breaks_off is not None:
        with decode_errors(source, f"decoding breaks off after timestamp {since:.2f} s"):
            raise breaks_off


def _packets_past_damage(
    container: InputContainer, stream: VideoStream, on_progress: Callable[[], None]
) -> Iterator[Packet[VideoStream] | None]:
    """Packets, with None where some could not be read; raises where none comes after an error."""
    has_failed = False
    while True:
        try:
            for packet in read_packets(container, stream, on_progress):
                if has_failed:
                    yield None
                    has_failed = False
                # An empty one says that the last picture is shown on, or is PyAV's own at the end.
                if packet.size:
                    yield packet
            return
        except av.FFmpegError:
            if has_failed:
                raise
            has_failed = True


def _decode_packet(stream: VideoStream, packet: Packet[Any] | None) -> Iterator[Decoded | None]:
    """Pictures that come out when a packet goes in; None for what cannot be decoded."""
    if packet is None:
        yield None
        return
    try:
        frames = stream.codec_context.decode(packet)
    except av.EOFError:
        return
    except av.FFmpegError:
        yield None
        return
    for frame in frames:
        base = frame.time_base or stream.time_base
        yield Decoded(
            time=_seconds(frame.pts, base),
            duration=_seconds(frame.duration or None, base),
            is_key=bool(frame.key_frame),
            is_corrupt=frame.is_corrupt,
            frame=frame,
        )


def _first_moving(
    path: str, indices: list[int], source: str, on_progress: Callable[[], None]
) -> int:
    """The first of some streams that has more than one packet, or the first of all."""
    num_packets = dict.fromkeys(indices, 0)
    with open_file(path, source=source) as container:
        streams = [container.streams[index] for index in indices]
        try:
            for total, packet in enumerate(container.demux(streams), start=1):
                if total % PROGRESS_PACKETS == 0:
                    on_progress()
                num_packets[packet.stream_index] += packet.size > 0
                if num_packets[indices[0]] > 1:
                    break
        except (av.FFmpegError, IndexError):
            # What could be read decides; decoding will say what is wrong with the rest.
            pass
    return next((index for index, number in num_packets.items() if number > 1), indices[0])


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _turn(frame: VideoFrame) -> Orientation:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return Orientation() if matrix is None else Orientation.from_display_matrix(bytes(matrix))


def _seconds(ticks: int | None, time_base: Fraction | None) -> Fraction | None:
    return None if ticks is None or time_base is None else ticks * time_base


def _what_is_wrong(path: str) -> str:
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "cannot be opened as a video" if size else "is empty"
