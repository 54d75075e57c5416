"""Pictures and sound as bytes that a browser shows: mp4 and PNG, and both as data URIs."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latents.mel import DECIBELS_PER_NEPER, MelSpec, downmix, resample, waveform_to_log_mel
from pipeline.write_video import AAC_SAMPLE_RATES, write_video

_COLOURS = np.array(
    [(9, 9, 24), (49, 24, 94), (122, 33, 110), (196, 58, 84), (245, 126, 47), (252, 236, 170)],
    np.float64,
)
"""From quiet to loud, of rising lightness."""
_PLAYED_RATE = 44100
_NUM_STILLS = 8
_STILL_HEIGHT = 128
_STILL_GAP = 2


def mp4_bytes(
    frames: NDArray[np.uint8], *, fps: int, waveform: NDArray[np.float32], sample_rate: int
) -> bytes:
    """H.264 and AAC of pictures (frame, 3, height, width) and sound (channel, sample).

    More than two channels are mixed down, and a rate that AAC does not have becomes 44.1 kHz.
    """
    if len(waveform) > 2 or sample_rate not in AAC_SAMPLE_RATES:
        mono = downmix(torch.from_numpy(waveform))
        waveform = resample(mono, sample_rate, _PLAYED_RATE).numpy()[None]
        sample_rate = _PLAYED_RATE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        pictures = (np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in frames)
        write_video(path, pictures, fps=fps, waveform=waveform, sample_rate=sample_rate)
        return path.read_bytes()


def mel_png(log_mel: Tensor, mel: MelSpec) -> bytes:
    """A log mel (num_mels, column) in colour, low at the bottom, one pixel a value."""
    span_db = mel.ceiling_db - mel.floor_db
    level = ((log_mel * DECIBELS_PER_NEPER - mel.floor_db) / span_db).clamp(0, 1).flip(0).numpy()
    positions = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(level, positions, _COLOURS[:, channel]) for channel in range(3)]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def sound_mel(waveform: NDArray[np.float32], sample_rate: int, mel: MelSpec) -> Tensor:
    """Log mel (num_mels, column) of sound (channel, sample) of any rate and layout.

    What is too short for a column is padded with silence.
    """
    mono = resample(downmix(torch.from_numpy(waveform)), sample_rate, mel.sample_rate)
    missing = max(0, mel.min_samples - len(mono))
    return waveform_to_log_mel(torch.nn.functional.pad(mono, (0, missing)), mel)


def still_frames(num_frames: int) -> list[int]:
    """Numbers of up to 8 frames, spread evenly from the first to the last."""
    count = min(num_frames, _NUM_STILLS)
    return [int(frame) for frame in np.linspace(0, num_frames - 1, count).round()]


def strip_png(rows: Sequence[NDArray[np.uint8]]) -> bytes:
    """PNG of rows of stills, each row (still, 3, height, width).

    All stills are as large as the first, but no higher than 128 pixels; between them one sees the
    page.
    """
    height = min(rows[0].shape[2], _STILL_HEIGHT)
    width = max(1, round(rows[0].shape[3] * height / rows[0].shape[2]))
    across, down = width + _STILL_GAP, height + _STILL_GAP
    size = (across * max(map(len, rows)) - _STILL_GAP, down * len(rows) - _STILL_GAP)
    strip = Image.new("RGBA", size)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
            still = image.resize((width, height), Image.Resampling.LANCZOS)
            strip.paste(still, (across * column, down * row))
    file = io.BytesIO()
    strip.save(file, format="PNG", optimize=True)
    return file.getvalue()


def read_mp4(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
    """Pictures (frame, 3, height, width), sound (channel, sample) and its rate of an mp4.

    Raises:
        av.FFmpegError: It is damaged, or no video.
        IndexError: It has no stream of pictures, or none of sound.
        ValueError: One of them is empty.
    """
    with av.open(io.BytesIO(content), "r") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(content), "r") as container:
        blocks = list(container.decode(audio=0))
    frames = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.uint8)
    sound = np.concatenate([block.to_ndarray() for block in blocks], axis=1).astype(np.float32)
    return frames, sound, blocks[0].sample_rate


def data_uri(content: bytes, media_type: str) -> str:
    """The content itself as an address, for example of type ``video/mp4``."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
