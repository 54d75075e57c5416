"""What a KL-VAE makes of cached latents, and how far that is from the clip: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latents.clip import ClipSpec, WindowGrid
from latents.mel import DECIBELS_PER_NEPER, MelSpec, image_to_log_mel, num_columns
from latents.models.vocoder import griffin_lim

MAX_PSNR_DB = 100.0
"""Given for pictures that are equal, where the ratio itself has no bound."""

_IMAGES_AT_A_TIME = 8


class ImageDecoder(Protocol):
    """What is needed of a KL-VAE."""

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (image, channel, h, w) to uint8 images (image, 3, height, width)."""


def reconstruct_frames(
    decoder: ImageDecoder, moments: NDArray[Any], *, num_threads: int = 1
) -> NDArray[np.uint8]:
    """Decodes the posterior means of cached moments, pictures and mel images alike.

    Args:
        decoder: The KL-VAE whose encoder made the moments.
        moments: (image, mean then logvar, height, width).
        num_threads: Parts of the images decoded at a time; it changes no byte.

    Returns:
        uint8 RGB (image, 3, 8 * height, 8 * width).
    """
    means = torch.from_numpy(moments[:, : moments.shape[1] // 2].astype(np.float32))
    with ThreadPoolExecutor(num_threads) as pool:
        parts = list(pool.map(decoder.decode, torch.split(means, _IMAGES_AT_A_TIME)))
    frames: NDArray[np.uint8] = torch.cat(parts).cpu().numpy()
    return frames


def covering_windows(grid: WindowGrid, stop_frame: int) -> tuple[int, ...]:
    """Numbers of the fewest windows that cover a clip's sound up to a frame.

    They lie side by side. Where their length does not divide the span, the last window of the
    grid that ends by ``stop_frame`` covers the rest and overlaps the one before it.
    """
    starts = [start for start in grid.starts() if start + grid.frames <= stop_frame]
    if not starts:
        return ()
    chosen = list(range(0, len(starts), grid.frames // grid.stride))
    if chosen[-1] != len(starts) - 1:
        chosen.append(len(starts) - 1)
    return tuple(chosen)


def stitch_log_mels(
    images: Sequence[Tensor],
    first_frames: Sequence[int],
    *,
    window_frames: int,
    clip_spec: ClipSpec,
    mel: MelSpec,
) -> Tensor:
    """One log mel (num_mels, column) from the mel images of windows that cover a span.

    A window is rarely a whole number of hops, so laying mels end to end would move sound against
    picture by up to a hop a window. Here column t is the one that holds the middle of the span's
    hop t, from the first window there; a window's last part of a hop repeats its last column.

    Args:
        images: Mel images (3, height, width), one for each window.
        first_frames: First frame of each window in the clip, ascending, without gaps.
        window_frames: Frames of a window.
        clip_spec: The frame grid.
        mel: The mel that was drawn.
    """
    starts = [clip_spec.first_sample(frame, mel.sample_rate) for frame in first_frames]
    window_samples = clip_spec.num_samples(window_frames, mel.sample_rate)
    width = num_columns(window_samples, mel)
    mels = [image_to_log_mel(image, mel, num_columns=width) for image in images]
    columns = []
    window = 0
    for column in range(num_columns(starts[-1] + window_samples - starts[0], mel)):
        middle = starts[0] + column * mel.hop_length + mel.hop_length // 2
        while middle >= starts[window] + window_samples:
            window += 1
        columns.append(mels[window][:, min((middle - starts[window]) // mel.hop_length, width - 1)])
    return torch.stack(columns, dim=1)


def reconstruct_sound(
    log_mel: Tensor, mel: MelSpec, *, first_sample: int, num_samples: int
) -> NDArray[np.float32]:
    """Griffin-Lim of a log mel, placed in silence.

    Args:
        log_mel: (num_mels, column).
        mel: Its specification.
        first_sample: Where the mel begins, in samples of the result.
        num_samples: Length of the result, at ``mel.sample_rate``.

    Returns:
        float32 (1, sample) in [-1, 1].
    """
    sound = np.zeros((1, num_samples), np.float32)
    waveform = griffin_lim(log_mel, mel).clamp(-1, 1).numpy()[: num_samples - first_sample]
    sound[0, first_sample : first_sample + len(waveform)] = waveform
    return sound


def psnr_db(reference: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all pixels, in dB of the peak 255, at most 100.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != reconstruction.shape:
        raise ValueError(
            f"pictures of one shape are compared, not {reference.shape} and {reconstruction.shape}"
        )
    difference = reference.astype(np.float32) - reconstruction.astype(np.float32)
    mean_square = float(np.mean(np.square(difference), dtype=np.float64))
    if mean_square == 0:
        return MAX_PSNR_DB
    return min(MAX_PSNR_DB, 10 * math.log10(255**2 / mean_square))


def mel_error_db(reference: Tensor, reconstruction: Tensor) -> float:
    """Mean absolute difference of two log mels (num_mels, column), in dB."""
    if reference.shape != reconstruction.shape:
        raise ValueError(
            f"log mels of one shape are compared, not {tuple(reference.shape)} and "
            f"{tuple(reconstruction.shape)}"
        )
    return float((reference - reconstruction).abs().mean()) * DECIBELS_PER_NEPER
