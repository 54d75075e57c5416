"""Videos whose pictures and samples tell their own number, and what decoding makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from latents.clip import Clip, ClipSpec, WindowSpec
from latents.errors import ClipError
from pipeline.decode import (
    DecodeEvent,
    SegmentRejected,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
    decode_source,
)

SIZE = 64
RATE = 8000
TICK = Fraction(1, 600)
"""Seconds; whole hundredths and thirtieths of a second are whole ticks."""
SPEC = ClipSpec(fps=10, segment_seconds=2, tail_frames=15, size=SIZE)
WINDOW = WindowSpec(frames=8, stride=4)
BACKENDS = ["decord", "pyav"]


def numbered_picture(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Eight upright bars, white where the number's binary digit is one."""
    bars = [255 * (number >> bit & 1) for bit in range(8)]
    row = np.repeat(np.array(bars, np.uint8), -(-width // 8))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """Reads `numbered_picture` from the middle row."""
    bars = frame[0, SIZE // 2, SIZE // 16 :: SIZE // 8]
    return sum(int(bar > 127) << bit for bit, bar in enumerate(bars))


def ramp(seconds: float, channels: int = 1) -> np.ndarray:
    """int16 (channel, sample): sample k is k modulo 20 000, so that it tells where it is from."""
    samples = np.arange(round(seconds * RATE), dtype=np.int16) % 20000
    return np.stack([samples + channel for channel in range(channels)])


def write_video(
    path: Path,
    times: Sequence[Fraction | float],
    *,
    sound: np.ndarray | None = None,
    sound_start: float = 0,
    layout: str = "mono",
    shape: tuple[int, int] = (SIZE, SIZE),
    pixel_aspect: Fraction | None = None,
    turn_left: float = 0,
    pixel_format: str = "yuv420p",
    mirrored: bool = False,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """A video that shows picture i from times[i] on, with lossless sound if the suffix is .mkv."""
    with av.open(str(path), "w") as container:
        packets = []
        if times:
            stream = container.add_stream(codec, rate=30, options=options or {"g": "12"})
            stream.height, stream.width = shape
            stream.pix_fmt = pixel_format
            if pixel_aspect is not None:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if turn_left or mirrored:
                stream.set_display_rotation(turn_left, hflip=mirrored)
            packets += encode_pictures(stream, times)
        if sound is not None:
            lossless = "pcm_f32le" if sound.dtype == np.float32 else "pcm_s16le"
            audio = container.add_stream(
                lossless if path.suffix == ".mkv" else "aac", rate=RATE, layout=layout
            )
            packets += encode_sound(audio, sound, sound_start, layout)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def encode_pictures(stream, times: Sequence[Fraction | float]) -> Iterator[av.Packet]:
    stream.codec_context.time_base = TICK
    for number, time in enumerate(times):
        picture = numbered_picture(number, stream.height, stream.width)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time / TICK), TICK
        yield from stream.encode(frame)
    yield from stream.encode(None)


def encode_sound(stream, sound: np.ndarray, start: float, layout: str) -> Iterator[av.Packet]:
    as_float = sound if sound.dtype == np.float32 else sound.astype(np.float32) / 32768
    is_packed = not stream.codec_context.format.is_planar
    for first in range(0, sound.shape[1], 800):
        block = sound[:, first : first + 800] if is_packed else as_float[:, first : first + 800]
        format_name = stream.codec_context.format.name
        array = np.ascontiguousarray(block.T.reshape(1, -1) if is_packed else block)
        frame = av.AudioFrame.from_ndarray(array, format=format_name, layout=layout)
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = round(start * RATE) + first
        yield from stream.encode(frame)
    yield from stream.encode(None)


def tenths(count: int, start: float = 0) -> list[float]:
    return [start + i / 10 for i in range(count)]


def task_for(path: Path) -> SourceTask:
    return SourceTask(uri=str(path), path=str(path), scene=None, digest="0" * 64)


def decode(
    task: SourceTask | Path,
    *,
    spec: ClipSpec = SPEC,
    window: WindowSpec = WINDOW,
    sound: SoundPolicy | None = None,
    backend: str = "pyav",
    on_progress: Callable[[], None] = lambda: None,
) -> list[DecodeEvent]:
    return list(
        decode_source(
            task_for(task) if isinstance(task, Path) else task,
            clip_spec=spec,
            window_spec=window,
            sound=sound or SoundPolicy(),
            backend=backend,
            on_progress=on_progress,
        )
    )


def only_clip(events: list[DecodeEvent]) -> Clip:
    (clip,) = [event for event in events if isinstance(event, Clip)]
    assert events[-1] == SourceDecoded(num_segments=1)
    return clip


def rejections(events: list[DecodeEvent]) -> list[tuple[int | None, type[ClipError]]]:
    return [
        (event.segment, type(event.error)) for event in events if isinstance(event, SegmentRejected)
    ]


def numbers(clip: Clip) -> list[int]:
    return [number_of(frame) for frame in clip.frames]


def clips_of(events: list[DecodeEvent]) -> list[Clip]:
    return [event for event in events if isinstance(event, Clip)]
