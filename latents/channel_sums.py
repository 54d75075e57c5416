"""Sums of one clip's latents, per channel: what a field is whitened by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipChannelSums:
    """Sums over all windows of a clip's field."""

    clip: str
    """Its key."""
    channel_count: int | None
    """Values per channel; None where the field holds no latents, as the sums are then."""
    mean_sum: Sequence[float] | None
    """Σμ per channel."""
    square_sum: Sequence[float] | None
    """Σ(μ² + σ²) per channel, or Σμ² for the spread of modes."""
