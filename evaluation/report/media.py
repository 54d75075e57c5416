"""Pictures and sound as bytes that a browser shows: mp4 and PNG, and both as data URIs."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latents.mel import DECIBELS_PER_NEPER, MelSpec, downmix, resample
from pipeline.write_video import AAC_SAMPLE_RATES, write_video

_COLOURS = np.array(
    [(9, 9, 24), (49, 24, 94), (122, 33, 110), (196, 58, 84), (245, 126, 47), (252, 236, 170)],
    np.float64,
)
"""From quiet to loud, of rising lightness."""
_PLAYED_RATE = 44100


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


def data_uri(content: bytes, media_type: str) -> str:
    """The content itself as an address, for example of type ``video/mp4``."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
