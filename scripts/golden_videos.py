"""Small sounding videos made from seeds, one for each way that decoders differ in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from pipeline.scenes.catalogue import SCENE_LABELS, make_scene
from pipeline.scenes.scene import Scene

SEED = 7
SECONDS = 2.0
LOSSLESS_CODECS = frozenset({"flac"})
"""Their samples are integers, the same on every processor."""
_BT601 = 6
_TICK = Fraction(1, 600)  # seconds; 1/20, 1/25 and 1/30 s are whole ticks
_VIDEO_OPTIONS = {
    # x264's fast lookahead and libvpx's threads could give other bytes from run to run.
    "libx264": {"crf": "22", "x264-params": "cpu-independent=1"},
    "libvpx-vp9": {"crf": "34", "b": "0", "row-mt": "0", "cpu-used": "2"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenVideo:
    """How one file is made."""

    name: str
    """Its file name; the suffix says the container."""
    label: str
    """Class of the scene it shows."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    picture_times: tuple[Fraction, ...]
    """Seconds at which pictures begin."""
    video_codec: str
    audio_codec: str
    sample_rate: int
    """Hz."""
    num_channels: int = 1
    audio_bits_per_second: int = 64_000
    """For each channel; with less, libopus leaves its CELT mode for those made for speech."""
    turn_degrees: int = 0
    """Quarter turns to the left that a player has to make."""


def _steady(fps: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(i, fps) for i in range(round(SECONDS * fps)))


def _uneven() -> tuple[Fraction, ...]:
    """Pictures 1/30 to 8/30 s apart, as from a phone in the dark."""
    gaps = np.random.default_rng(SEED).choice([1, 1, 2, 3, 8], 60)
    times = [Fraction(int(start), 30) for start in np.cumsum(gaps) - gaps[0]]
    return tuple(time for time in times if time < SECONDS)


GOLDEN_VIDEOS = (
    GoldenVideo(
        name="reordered.mp4",
        label="train",
        height=120,
        width=160,
        picture_times=_steady(25),
        video_codec="libx264",
        audio_codec="aac",
        sample_rate=44100,
    ),
    GoldenVideo(
        name="uneven.mkv",
        label="xylophone",
        height=96,
        width=128,
        picture_times=_uneven(),
        video_codec="libx264",
        audio_codec="flac",
        sample_rate=8000,
    ),
    GoldenVideo(
        name="turned.mp4",
        label="bouncing_ball",
        height=120,
        width=160,
        picture_times=_steady(30),
        video_codec="libx264",
        audio_codec="aac",
        sample_rate=48000,
        num_channels=2,
        turn_degrees=90,
    ),
    GoldenVideo(
        name="odd.webm",
        label="bird",
        height=121,
        width=161,
        picture_times=_steady(20),
        video_codec="libvpx-vp9",
        audio_codec="libopus",
        sample_rate=48000,
    ),
    GoldenVideo(
        name="whistled.webm",
        label="bird",
        height=72,
        width=96,
        picture_times=_steady(10),
        video_codec="libvpx-vp9",
        audio_codec="libopus",
        sample_rate=48000,
        audio_bits_per_second=24_000,
    ),
)


def write_golden_video(video: GoldenVideo, path: Path) -> None:
    """Encode a video; the same encoders on the same kind of processor give equal bytes."""
    scene = make_scene(SEED, SCENE_LABELS.index(video.label), seconds=SECONDS)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        pictures, sound = _add_pictures(container, video), _add_sound(container, video)
        packets = [*_encode_pictures(pictures, scene, video), *_encode_sound(sound, scene)]
        for packet in sorted(packets, key=_decode_time):
            container.mux(packet)


def _add_pictures(container: OutputContainer, video: GoldenVideo) -> VideoStream:
    stream = container.add_stream(video.video_codec, rate=30)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width, stream.pix_fmt = video.height, video.width, "yuv420p"
    stream.options = {**_VIDEO_OPTIONS[video.video_codec]}
    context = stream.codec_context
    context.time_base, context.thread_count, context.gop_size = _TICK, 1, 24
    context.flags |= Flags.bitexact
    context.colorspace, context.color_range = _BT601, ColorRange.MPEG
    if video.turn_degrees:
        stream.set_display_rotation(video.turn_degrees)
    return stream


def _add_sound(container: OutputContainer, video: GoldenVideo) -> AudioStream:
    stream = container.add_stream(video.audio_codec, rate=video.sample_rate)
    assert isinstance(stream, AudioStream)
    stream.codec_context.layout = "mono" if video.num_channels == 1 else "stereo"
    stream.codec_context.bit_rate = video.audio_bits_per_second * video.num_channels
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _encode_pictures(
    stream: VideoStream, scene: Scene, video: GoldenVideo
) -> Iterator[Packet[Any]]:
    for time in video.picture_times:
        pixels = scene.frame(float(time), height=video.height, width=video.width)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = int(time / _TICK), _TICK
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _encode_sound(stream: AudioStream, scene: Scene) -> Iterator[Packet[Any]]:
    context = stream.codec_context
    waveform = scene.waveform(stream.rate)[: context.channels]
    # PyAV cuts it, and turns it into integers for FLAC and Opus.
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(waveform), format="fltp", layout=context.layout.name
    )
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, 0, Fraction(1, stream.rate)
    yield from stream.encode(frame)
    yield from stream.encode(None)


def _decode_time(packet: Packet[Any]) -> Fraction:
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base
