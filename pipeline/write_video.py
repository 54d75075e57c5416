"""Write pictures and sound as an mp4 that plays everywhere; equal input gives equal bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import NDArray

AAC_SAMPLE_RATES = (
    7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000
)  # fmt: skip
"""The sample rates that AAC has, in Hz."""

_BT601 = 6  # the matrix that the conversion from RGB uses; players guess another for large sizes
_AAC_FRAME = 1024  # samples; the encoder takes no more at once


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: int,
    waveform: NDArray[np.float32] | None,
    sample_rate: int,
) -> None:
    """Write an H.264 (yuv420p) and AAC mp4 whose picture and sound both begin at 0.

    The file is written beside `path` and renamed, so that `path` is whole or does not exist.
    An odd height or width is padded by repeating the last row or column, as 4:2:0 needs even ones.

    Args:
        path: The file to write; an existing one is replaced.
        frames: RGB pictures, (height, width, 3) uint8, all of one size, at least one.
        fps: Frames per second.
        waveform: Sound, (1 or 2 channels, sample) in [-1, 1], or none for a silent file.
        sample_rate: Hz, one that AAC knows; ignored without a waveform.

    Raises:
        ValueError: No frame, a frame of another size or type, a waveform of another shape, or a
            rate that AAC does not know.
        OSError: `path` cannot be written.
    """
    if fps < 1:
        raise ValueError(f"fps is {fps}; it must be >= 1")
    if waveform is not None:
        _check_sound(waveform, sample_rate)
    aside = path.with_name(f"{path.name}.part")
    try:
        with av.open(
            str(aside), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
        ) as container:
            _write_streams(container, frames, fps, waveform, sample_rate)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_streams(
    container: OutputContainer,
    frames: Iterable[NDArray[np.uint8]],
    fps: int,
    waveform: NDArray[np.float32] | None,
    sample_rate: int,
) -> None:
    """Add and fill both streams; the muxer interleaves them."""
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("no frames to write; a video needs at least one")
    _check_frame(first, first.shape)
    video = _add_video(container, fps, first.shape[0], first.shape[1])
    audio = None if waveform is None else _add_audio(container, sample_rate, len(waveform))
    heard = 0
    for i, frame in enumerate(itertools.chain((first,), pictures)):
        _check_frame(frame, first.shape)
        _encode_frame(container, video, frame, i)
        if audio is not None and waveform is not None:
            # Sound goes in beside its pictures, so that a player need not read far ahead.
            stop = (i + 1) * sample_rate // fps
            heard = _encode_sound(container, audio, waveform, start=heard, stop=stop)
    container.mux(video.encode(None))
    if audio is not None and waveform is not None:
        _encode_sound(container, audio, waveform, start=heard, stop=waveform.shape[1])
        container.mux(audio.encode(None))


def _add_video(container: OutputContainer, fps: int, height: int, width: int) -> VideoStream:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = height + height % 2, width + width % 2
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, fps)
    # Several threads cut slices by their number. And x264's fast lookahead reads beyond a small
    # picture, so that equal input gave other bytes now and then; its portable one does not.
    stream.codec_context.thread_count = 1
    stream.options = {"crf": "18", "preset": "medium", "x264-params": "cpu-independent=1"}
    stream.codec_context.flags |= Flags.bitexact
    stream.codec_context.colorspace = _BT601
    stream.codec_context.color_range = ColorRange.MPEG
    return stream


def _add_audio(container: OutputContainer, sample_rate: int, num_channels: int) -> AudioStream:
    stream = container.add_stream("aac", rate=sample_rate)
    stream.codec_context.layout = "mono" if num_channels == 1 else "stereo"
    stream.codec_context.bit_rate = 96_000 * num_channels
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _encode_frame(
    container: OutputContainer, stream: VideoStream, pixels: NDArray[np.uint8], index: int
) -> None:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts, frame.time_base = index, stream.codec_context.time_base
    container.mux(stream.encode(frame))


def _encode_sound(
    container: OutputContainer,
    stream: AudioStream,
    waveform: NDArray[np.float32],
    *,
    start: int,
    stop: int,
) -> int:
    """Encode whole AAC frames from sample `start` until `stop` is passed; gives the next start."""
    stop = min(stop, waveform.shape[1])
    while start < stop:
        block = np.clip(waveform[:, start : start + _AAC_FRAME], -1, 1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block), format="fltp", layout=stream.layout.name
        )
        frame.sample_rate, frame.pts = stream.rate, start
        frame.time_base = Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
        start += _AAC_FRAME
    return start


def _check_frame(frame: NDArray[np.uint8], wanted: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != wanted:
        raise ValueError(
            f"frame is {frame.dtype} {frame.shape}; wanted uint8 (height, width, 3), all of the "
            f"size of the first, {wanted[:2]}"
        )


def _check_sound(waveform: NDArray[np.float32], sample_rate: int) -> None:
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.shape[1]:
        raise ValueError(
            f"waveform has shape {waveform.shape}; wanted (1 or 2 channels, at least one sample)"
        )
    if sample_rate not in AAC_SAMPLE_RATES:
        raise ValueError(
            f"AAC has no sample rate of {sample_rate} Hz; resample to one of {AAC_SAMPLE_RATES}"
        )
