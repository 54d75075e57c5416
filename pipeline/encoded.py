"""What encoding gives: the tensors of a clip's fields, and the sums over their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.clip import ClipKey, WindowGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelSums:
    """Per channel: number of values, sum of means, sum of squared means plus variances."""

    count: int
    mean_sum: tuple[float, ...]
    square_sum: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """The tensors of one clip, by field, and what the log records beside them."""

    key: ClipKey
    segment: int
    tensors: dict[str, NDArray[Any]]
    channel_sums: dict[str, ChannelSums]
    grid: WindowGrid
    sample_rate: int
    loudness_dbfs: float
    sound_first_frame: int
    sound_stop_frame: int
    device: str
    encode_seconds: float
    num_kl_images: int


def channel_sums(moments: NDArray[np.float16]) -> ChannelSums:
    """Sums over a tensor of moments (row, mean then logvar, height, width), in float64."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    axes = (0, 2, 3)
    return ChannelSums(
        count=mean.size // mean.shape[1],
        mean_sum=tuple(mean.sum(axis=axes).tolist()),
        square_sum=tuple((mean**2 + np.exp(logvar)).sum(axis=axes).tolist()),
    )
