"""The mel images that stand for the sound of a clip's windows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from latents.clip import ClipSpec, WindowGrid
from latents.mel import MelSpec, downmix, resample, window_images


def mel_images(
    waveform: NDArray[np.float32],
    *,
    sample_rate: int,
    grid: WindowGrid,
    clip_spec: ClipSpec,
    mel: MelSpec,
) -> torch.Tensor:
    """One uint8 image (3, 256, 256) for the sound of each window, stacked.

    Args:
        waveform: Of a clip, (channel, sample).
        sample_rate: Hz.
        grid: The clip's windows.
        clip_spec: The frame grid.
        mel: How sound becomes an image.
    """
    mono = resample(downmix(torch.from_numpy(waveform)), sample_rate, mel.sample_rate)
    num_samples = clip_spec.num_samples(grid.frames, mel.sample_rate)
    windows = torch.zeros(grid.num_windows, num_samples)
    for window, start_frame in zip(windows, grid.starts(), strict=True):
        start = clip_spec.first_sample(start_frame, mel.sample_rate)
        sound = mono[start : start + num_samples]
        window[: len(sound)] = sound
    return window_images(windows, mel)
