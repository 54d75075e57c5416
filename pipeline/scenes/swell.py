"""A slow rise and fall, as of rain and sea."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.sound import Signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Swell:
    """A slow rise and fall between `low` and `high`."""

    low: float
    high: float
    period: float
    phase: float

    def at(self, time_seconds: float) -> float:
        """Its value at a time."""
        turn = 2 * math.pi * time_seconds / self.period + self.phase
        return self.low + (self.high - self.low) * (0.5 - 0.5 * math.cos(turn))

    def over(self, times: Signal) -> Signal:
        """Its values at many times."""
        turn = 2 * math.pi * times / self.period + self.phase
        return self.low + (self.high - self.low) * (0.5 - 0.5 * np.cos(turn))
