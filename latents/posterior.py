"""Stored posterior moments to latents: the mode, or a draw.

Moments are (..., 2 * channel, row, column), mean then log-variance, as float16 in the cache.
Encoders clamp the log-variance to [-30, 20], so a standard deviation lies in [3.1e-7, 2.2e4].
float16 holds both ends; it rounds a log-variance by at most 2**-7 (beyond 16; 2**-10 within 4),
hence a standard deviation by at most 0.4 % (0.05 %), and a mean by 2**-11 of itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Draw = Literal["mode", "sample"]
"""What training reads of a posterior: its mean, as the paper's code does, or a draw."""

MIN_LOGVAR = -30.0
MAX_LOGVAR = 20.0


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, float32 (..., channel, row, column), the latter clamped.

    Raises:
        ValueError: There is no channel axis that halves.
    """
    if moments.ndim < 3 or moments.shape[-3] % 2:
        raise ValueError(
            "moments must be (..., mean then logvar, row, column), got shape "
            f"{tuple(moments.shape)}"
        )
    mean, logvar = moments.float().chunk(2, dim=-3)
    return mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)


def posterior_mode(moments: Tensor) -> Tensor:
    """The mean, float32 (..., channel, row, column): a Gaussian's most likely latent."""
    return split_moments(moments)[0]


def posterior_draw(moments: Tensor, noise: Tensor) -> Tensor:
    """Mean plus standard deviation times noise, float32 (..., channel, row, column).

    Args:
        moments: (..., 2 * channel, row, column).
        noise: Standard normal, of the mean's shape and device.

    Raises:
        ValueError: The noise has another shape.
    """
    mean, logvar = split_moments(moments)
    if noise.shape != mean.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, the mean {tuple(mean.shape)}")
    return mean + torch.exp(logvar / 2) * noise
