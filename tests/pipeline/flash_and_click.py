"""A video that flashes and clicks at known times, written into many containers and codecs.

Pictures are black but for flashes, sound is faint noise but for clicks; both begin at the same
times. Whatever a container and its codecs do to timestamps, they must be found there again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 128
"""A size that H.263 can hold, too."""
FLASH_SECONDS = 0.25
_CLICK_SECONDS = 0.004
_CLICK_HERTZ = 1500
"""Below half of 8 kHz, and short enough to be placed to a fraction of a millisecond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What is written, and how."""

    suffix: str
    """Of the file; it names the container."""
    video_codec: str = "libx264"
    video_options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    picture_rate: Fraction = Fraction(30)
    """Pictures per second."""
    audio_codec: str = "aac"
    audio_options: dict[str, str] = field(default_factory=dict)
    sample_rate: int = 48000
    """Hz."""
    layout: str = "stereo"
    container_options: dict[str, str] = field(default_factory=dict)
    event_seconds: tuple[float, ...] = (1.2, 3.1)
    """When there is a flash and a click, counted from the first picture written."""
    seconds: int = 4
    """Length of the pictures."""
    sound_start_seconds: float = 0
    """When the sound begins, counted from the first picture. It ends with the pictures."""
    stated_offset_seconds: float = 0
    """Added to all timestamps. What would be shown before zero is cut off by an edit list."""
    sound_clock: Fraction = Fraction(1)
    """Seconds by the pictures' clock in which the sound's clock counts one second."""

    @property
    def shown_event_seconds(self) -> tuple[float, ...]:
        """The same, counted from the first picture shown."""
        cut = max(0.0, -self.stated_offset_seconds)
        return tuple(event - cut for event in self.event_seconds)


def click(sample_rate: int) -> NDArray[np.float32]:
    """The sound of one click, from its first sample on."""
    times = np.arange(round(_CLICK_SECONDS * sample_rate)) / sample_rate
    tone = np.sin(2 * np.pi * _CLICK_HERTZ * times) * np.exp(-times / _CLICK_SECONDS * 3)
    return (0.9 * tone).astype(np.float32)


def write_recording(path: Path, recording: Recording) -> Path:
    """Writes the video and gives its path."""
    with av.open(str(path), "w", container_options=recording.container_options) as container:
        video, audio = _add_video(container, recording), _add_audio(container, recording)
        # All of it before the first packet is written, since encoders add to the headers.
        packets = [*_encode_pictures(video, recording), *_encode_sound(audio, recording)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def drop_sound_packets(path: Path, *, from_seconds: float, count: int) -> Path:
    """A copy without some consecutive packets of the sound."""
    copy = path.with_stem(f"{path.stem}-{count}-lost")
    num_dropped = 0
    with av.open(str(path)) as read, av.open(str(copy), "w") as written:
        streams = {
            stream.index: written.add_stream_from_template(stream) for stream in read.streams
        }
        for packet in read.demux():
            if not packet.size:
                continue
            is_late = packet.pts is not None and packet.pts * packet.time_base >= from_seconds
            if packet.stream.type == "audio" and is_late and num_dropped < count:
                num_dropped += 1
                continue
            packet.stream = streams[packet.stream.index]
            written.mux(packet)
    assert num_dropped == count
    return copy


def damage_sound_packets(path: Path, *, from_seconds: float, count: int) -> Path:
    """A copy of the file in which noise stands for some consecutive packets of the sound."""
    copy = path.with_stem(f"{path.stem}-{count}-damaged")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [
            bytes(packet)
            for packet in container.demux(audio=0)
            if packet.size and packet.pts * packet.time_base >= from_seconds
        ]
    for packet in packets[:count]:
        first = content.index(packet)
        content[first : first + len(packet)] = np.random.default_rng(0).bytes(len(packet))
    copy.write_bytes(content)
    return copy


def flash_times(frames: NDArray[np.uint8], fps: int) -> list[float]:
    """Seconds from the first frame to the first frame of each flash."""
    is_bright = frames.mean(axis=(1, 2, 3)) > 80
    begins = is_bright & ~np.concatenate([[False], is_bright[:-1]])
    return [int(frame) / fps for frame in np.flatnonzero(begins)]


def click_times(waveform: NDArray[np.float32], sample_rate: int, *, num_clicks: int) -> list[float]:
    """Seconds from the first sample to where sound is most like a click, in order."""
    pattern = click(sample_rate).astype(np.float64)
    likeness = np.correlate(waveform[0].astype(np.float64), pattern, mode="valid")
    apart = sample_rate // 4
    found: list[float] = []
    for _ in range(num_clicks):
        first = int(likeness.argmax())
        found.append(first / sample_rate)
        likeness[max(0, first - apart) : first + apart] = -np.inf
    return sorted(found)


def _add_video(container: Any, recording: Recording) -> Any:
    stream = container.add_stream(
        recording.video_codec, rate=recording.picture_rate, options=dict(recording.video_options)
    )
    stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, recording.pixel_format
    stream.codec_context.thread_count = 1
    return stream


def _add_audio(container: Any, recording: Recording) -> Any:
    return container.add_stream(
        recording.audio_codec,
        rate=recording.sample_rate,
        layout=recording.layout,
        options=dict(recording.audio_options),
    )


def _encode_pictures(stream: Any, recording: Recording) -> Iterator[Any]:
    rate = recording.picture_rate
    offset = round(recording.stated_offset_seconds * rate)
    for number in range(int(recording.seconds * rate)):
        time = float(number / rate)
        # Within a microsecond, so that rounding does not move a flash by a picture.
        is_lit = any(0 <= time - event + 1e-6 < FLASH_SECONDS for event in recording.event_seconds)
        picture = np.full((HEIGHT, WIDTH, 3), 255 if is_lit else 0, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = offset + number, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _encode_sound(stream: Any, recording: Recording) -> Iterator[Any]:
    sound = _sound(recording)
    resampler = av.AudioResampler(format=stream.codec_context.format.name)
    length = stream.codec_context.frame_size or 1024
    rate, clock = recording.sample_rate, recording.sound_clock
    start = recording.sound_start_seconds + recording.stated_offset_seconds
    for first in range(0, len(sound), length):
        block = np.repeat(sound[None, first : first + length], 2, axis=0)
        block = block[: len(av.AudioLayout(recording.layout).channels)]
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block), format="fltp", layout=recording.layout
        )
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start * rate + first * clock)
        for converted in resampler.resample(frame):
            yield from stream.encode(converted)
    yield from stream.encode(None)


def _sound(recording: Recording) -> NDArray[np.float32]:
    """Samples (sample,), counted by the sound's own clock from its start."""
    rate, start = recording.sample_rate, recording.sound_start_seconds
    seconds = (recording.seconds - start) / float(recording.sound_clock)
    sound = np.random.default_rng(0).normal(0, 0.002, round(seconds * rate)).astype(np.float32)
    pattern = click(rate)
    for event in recording.event_seconds:
        first = round((event - start) / float(recording.sound_clock) * rate)
        sound[first : first + len(pattern)] += pattern
    return sound
