"""Per-channel mean and spread of a snapshot's latents, and whitening by them.

They are summed from what the log's rows hold of each clip: a count, Σμ and Σ(μ² + σ²) per channel.
Sums are exact and rounded once, so equal sets of rows give equal numbers, whatever their order.

Σ(μ² + σ²) / n - mean² is the variance of *draws* from the posteriors: that of their means plus the
mean of their variances. Rows do not hold the two parts. Training on modes sees the means alone,
whose variance is smaller: whitened by the variance of draws it is 1 - (mean of σ²) / total in each
channel, little below 1 where posteriors are narrow. `mode_sums` measures the variance of the means
themselves; it has to read the moments for that.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from latents.channel_sums import ClipChannelSums
from latents.posterior import posterior_mode

Spread = Literal["draws", "modes"]
"""Of what the variance is: draws from the posteriors, or their means."""

STD_FLOOR = 1e-3
"""Channels are divided by at least this part of the largest standard deviation among them.

A dead channel is constant but for rounding. Divided by its own spread, rounding would become
unit variance: noise that a generator spends capacity on. float16 rounds by up to 2**-11 = 5e-4 of a
value, so among channels of like size, spreads below 1e-3 of the largest are mostly rounding.
"""


class ClipSums(Protocol):
    """What is read of a clip's row: `latents.cache.rows.LatentRow`, or `ClipChannelSums`."""

    @property
    def clip(self) -> str:
        """Key of the clip."""

    @property
    def channel_count(self) -> int | None:
        """Values per channel."""

    @property
    def mean_sum(self) -> Sequence[float] | None:
        """Σμ per channel."""

    @property
    def square_sum(self) -> Sequence[float] | None:
        """Σ(μ² + σ²) per channel, or Σμ² for the spread of modes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whitening:
    """A field's mean and standard deviation per channel, and the way to unit variance and back."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    """As measured; 0 for a constant channel."""
    spread: Spread = "draws"
    std_floor: float = STD_FLOOR
    """Part of the largest standard deviation."""

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std, self.std_floor)):
            raise ValueError(f"means, standard deviations and floor must be finite, got {self}")
        if min(self.std) < 0 or max(self.std) == 0:
            raise ValueError(f"no channel varies, or one varies by less than 0: {self.std}")
        if not 0 < self.std_floor <= 1:
            raise ValueError(f"std_floor is {self.std_floor}; it must be above 0 and at most 1")
        if self.spread not in get_args(Spread):
            raise ValueError(f"spread is {self.spread!r}; it must be one of {get_args(Spread)}")

    @property
    def scale(self) -> tuple[float, ...]:
        """What each channel is divided by: its standard deviation, or the floor."""
        floor = self.std_floor * max(self.std)
        return tuple(max(std, floor) for std in self.std)

    @property
    def whitened_variance(self) -> tuple[float, ...]:
        """Of whitened latents of this spread, per channel: 1, or less below the floor."""
        return tuple((std / scale) ** 2 for std, scale in zip(self.std, self.scale, strict=True))

    def whiten(self, latents: Tensor) -> Tensor:
        """float32 (..., channel, row, column) with mean 0 and variance 1 per channel."""
        mean, scale = self._columns(latents)
        return (latents.float() - mean) / scale

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Inverse of `whiten`, to float32 rounding."""
        mean, scale = self._columns(whitened)
        return whitened.float() * scale + mean

    def _columns(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, float32 (channel, 1, 1)."""
        if latents.ndim < 3 or latents.shape[-3] != len(self.mean):
            raise ValueError(
                f"latents must be (..., {len(self.mean)}, row, column), got {tuple(latents.shape)}"
            )
        columns = torch.tensor([self.mean, self.scale], device=latents.device)[..., None, None]
        return columns[0], columns[1]

    def to_record(self) -> dict[str, Any]:
        """As JSON values; Python writes floats so that reading them gives the same floats."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "spread": self.spread,
            "std_floor": self.std_floor,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Whitening:
        """Inverse of `to_record`.

        Raises:
            ValueError: It is no such record.
        """
        try:
            return cls(
                mean=tuple(float(value) for value in record["mean"]),
                std=tuple(float(value) for value in record["std"]),
                spread=record["spread"],
                std_floor=float(record["std_floor"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a whitening: {error!r}") from error


def whitening_of(
    rows: Iterable[ClipSums], *, spread: Spread = "draws", std_floor: float = STD_FLOOR
) -> Whitening:
    """The whitening of one field over some clips, for example those of the training split.

    Args:
        rows: One for each clip, in any order.
        spread: What their square sums are of: ``draws`` for the log's rows, ``modes`` for
            `mode_sums`.
        std_floor: See `STD_FLOOR`.

    Raises:
        ValueError: No rows, no values, a clip twice, rows without sums, of different numbers of
            channels or with sums that are not finite, or no channel varies.
    """
    table = _Table.of(rows)
    means = [Fraction(total) / table.count for total in table.totals(table.means)]
    squares = [Fraction(total) / table.count for total in table.totals(table.squares)]
    # As fractions: as floats, the difference would lose digits where the mean outweighs the spread.
    variances = [square - mean**2 for mean, square in zip(means, squares, strict=True)]
    return Whitening(
        mean=tuple(float(mean) for mean in means),
        std=tuple(math.sqrt(max(Fraction(0), variance)) for variance in variances),
        spread=spread,
        std_floor=std_floor,
    )


def mode_sums(clip: str, moments: Tensor) -> ClipChannelSums:
    """Sums of a clip's posterior means, float64, for the spread of modes.

    Args:
        clip: Its key.
        moments: (window, 2 * channel, row, column).
    """
    mean = posterior_mode(moments).double().cpu()
    axes = (0, 2, 3)
    return ClipChannelSums(
        clip=clip,
        channel_count=mean.numel() // mean.shape[1],
        mean_sum=tuple(mean.sum(axes).tolist()),
        square_sum=tuple(mean.square().sum(axes).tolist()),
    )


@dataclass(slots=True)
class _Table:
    """Sums of all clips: 16 bytes a clip and channel, and the clips' keys."""

    num_channels: int = 0
    count: int = 0
    """Values per channel, of all clips."""
    means: array[float] = field(default_factory=lambda: array("d"))
    squares: array[float] = field(default_factory=lambda: array("d"))
    """Of (clip, channel)."""

    @classmethod
    def of(cls, rows: Iterable[ClipSums]) -> _Table:
        """Raises `ValueError` as `whitening_of`."""
        table, clips = cls(), set[str]()
        for row in rows:
            if row.clip in clips:
                raise ValueError(
                    f"clip {row.clip} comes twice; give rows of one field and snapshot"
                )
            clips.add(row.clip)
            table.add(row)
        if not clips:
            raise ValueError("there are no rows to whiten by")
        return table

    def add(self, row: ClipSums) -> None:
        if not row.channel_count or not row.mean_sum or not row.square_sum:
            raise ValueError(f"the row of clip {row.clip} has no sums; its field holds no latents")
        self.num_channels = self.num_channels or len(row.mean_sum)
        if not len(row.mean_sum) == len(row.square_sum) == self.num_channels:
            raise ValueError(f"clip {row.clip} has sums of other channels than those before it")
        if not all(map(math.isfinite, (*row.mean_sum, *row.square_sum))):
            raise ValueError(f"the sums of clip {row.clip} are not finite")
        self.count += row.channel_count
        self.means.extend(row.mean_sum)
        self.squares.extend(row.square_sum)

    def totals(self, sums: array[float]) -> list[float]:
        """Of each channel, over all clips, rounded once."""
        return [
            math.fsum(sums[channel :: self.num_channels]) for channel in range(self.num_channels)
        ]
