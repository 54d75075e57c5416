"""How far two encoders' posteriors of the same clips are apart: pure functions.

Posteriors are diagonal Gaussians. Every figure but the relative distance of the means is the same
for raw and for scaled latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelDrift:
    """One channel. Standard deviations are of draws from the posteriors, as whitening uses them."""

    shift_in_stds: float
    """Mean under B less mean under A, in standard deviations under A."""
    std_ratio: float
    """Standard deviation under B over that under A."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PosteriorDrift:
    """Posteriors under B against those under A, over all values of some clips."""

    num_values: int
    relative_l2: float | None
    """``||mean_B - mean_A|| / ||mean_A||``; None where all means under A are zero."""
    worst_clip: str | None
    """The clip that is farthest apart by that measure."""
    worst_relative_l2: float | None
    kl_ab_nats_per_value: float
    """KL(A || B): what coding draws of A as if they came from B costs, in nats."""
    kl_ba_nats_per_value: float
    channels: tuple[ChannelDrift, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ChannelSums:
    """Per channel, of one clip under one encoder."""

    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Sum of the squared distances of means from ``mean``, plus the variances."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClipSums:
    clip: str
    num_values: int
    square_difference: float
    square_a: float
    kl_ab: float
    kl_ba: float
    a: _ChannelSums
    b: _ChannelSums


def posterior_drift(clips: Iterable[tuple[str, NDArray[Any], NDArray[Any]]]) -> PosteriorDrift:
    """Distances of posteriors, over clips that are read one at a time.

    Args:
        clips: At least one. Key of the clip, moments under A, moments under B: both of one shape
            (frame or window, mean then logvar, height, width).
    """
    sums = [_sum_clip(clip, a, b) for clip, a, b in clips]
    num_values = sum(one.num_values for one in sums)
    by_clip = {one.clip: _relative(one.square_difference, one.square_a) for one in sums}
    known = {clip: distance for clip, distance in by_clip.items() if distance is not None}
    worst = max(known, key=lambda clip: known[clip], default=None)
    return PosteriorDrift(
        num_values=num_values,
        relative_l2=_relative(
            math.fsum(one.square_difference for one in sums),
            math.fsum(one.square_a for one in sums),
        ),
        worst_clip=worst,
        worst_relative_l2=None if worst is None else known[worst],
        kl_ab_nats_per_value=math.fsum(one.kl_ab for one in sums) / num_values,
        kl_ba_nats_per_value=math.fsum(one.kl_ba for one in sums) / num_values,
        channels=_channel_drifts(sums),
    )


def _sum_clip(clip: str, moments_a: NDArray[Any], moments_b: NDArray[Any]) -> _ClipSums:
    mean_a, logvar_a = np.split(moments_a.astype(np.float64), 2, axis=1)
    mean_b, logvar_b = np.split(moments_b.astype(np.float64), 2, axis=1)
    square = np.square(mean_b - mean_a)
    return _ClipSums(
        clip=clip,
        num_values=mean_a.size,
        square_difference=float(square.sum()),
        square_a=float(np.square(mean_a).sum()),
        kl_ab=_kl(square, logvar_a, logvar_b),
        kl_ba=_kl(square, logvar_b, logvar_a),
        a=_sum_channels(mean_a, logvar_a),
        b=_sum_channels(mean_b, logvar_b),
    )


def _kl(
    square: NDArray[np.float64], logvar: NDArray[np.float64], other: NDArray[np.float64]
) -> float:
    """Sum of KL(N(., exp(logvar)) || N(., exp(other))) in nats, of means so far apart squared."""
    change = logvar - other
    # expm1 makes equal posteriors exactly 0 apart.
    return float(0.5 * (np.expm1(change) - change + square * np.exp(-other)).sum())


def _sum_channels(mean: NDArray[np.float64], logvar: NDArray[np.float64]) -> _ChannelSums:
    axes = (0, 2, 3)
    centre = mean.mean(axis=axes)
    spread = np.square(mean - centre[:, None, None]) + np.exp(logvar)
    return _ChannelSums(mean=centre, squares=spread.sum(axis=axes))


def _channel_drifts(sums: Sequence[_ClipSums]) -> tuple[ChannelDrift, ...]:
    counts = np.array([one.num_values for one in sums], np.float64)
    mean_a, std_a = _pooled(counts, [one.a for one in sums])
    mean_b, std_b = _pooled(counts, [one.b for one in sums])
    shifts, ratios = (mean_b - mean_a) / std_a, std_b / std_a
    return tuple(
        ChannelDrift(shift_in_stds=shift, std_ratio=ratio)
        for shift, ratio in zip(shifts.tolist(), ratios.tolist(), strict=True)
    )


def _pooled(
    counts: NDArray[np.float64], sums: Sequence[_ChannelSums]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel over all clips."""
    means = np.stack([one.mean for one in sums])
    squares = np.stack([one.squares for one in sums]).sum(axis=0)
    per_channel = counts[:, None] / means.shape[1]
    mean = (per_channel * means).sum(axis=0) / per_channel.sum()
    between = (per_channel * np.square(means - mean)).sum(axis=0)
    return mean, np.sqrt((squares + between) / per_channel.sum())


def _relative(square_difference: float, square_norm: float) -> float | None:
    return math.sqrt(square_difference / square_norm) if square_norm else None
