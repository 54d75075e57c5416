"""The figures of a run at one time: what is shown, noted in its folder, and given to monitors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.stage_clock import Stage, StageTime

_COUNTS = ("num_total", "num_done", "num_clips", "num_windows", "num_images", "num_quarantined")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Counts and times since a run began."""

    seconds: float
    num_total: int
    """Sources or tasks there are."""
    num_done: int
    num_clips: int
    num_windows: int
    num_images: int
    """Frames and mel images that the KL-VAE encoded."""
    num_quarantined: int
    """Clips and sources that were given up."""
    causes: Mapping[str, int]
    """How many were given up by which class of error, the most frequent first."""
    stages: Mapping[Stage, StageTime]
    """Of all workers together."""
    is_stopping: bool = False
    """It was asked to end."""

    @property
    def clips_per_second(self) -> float:
        """Since the run began."""
        return self.num_clips / self.seconds if self.seconds > 0 else 0.0

    @property
    def windows_per_second(self) -> float:
        """Since the run began."""
        return self.num_windows / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """What is left at the pace so far; None before anything is done."""
        if not self.num_done:
            return None
        return (self.num_total - self.num_done) * self.seconds / self.num_done

    @property
    def quarantine_rate(self) -> float:
        """Share of what was given up among that and the clips that were made."""
        num = self.num_quarantined + self.num_clips
        return self.num_quarantined / num if num else 0.0

    @property
    def gpu_wait(self) -> float | None:
        """Share of the time in which the GPU had no clip to encode; None without a GPU."""
        return 1 - self.stages["gpu"].busy_share if "gpu" in self.stages else None

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it, for `json.dumps`."""
        return {
            "seconds": round(self.seconds, 3),
            **{name: getattr(self, name) for name in _COUNTS},
            "causes": dict(self.causes),
            "stages": {
                stage: {
                    "busy_seconds": round(time.busy_seconds, 3),
                    "waiting_seconds": round(time.waiting_seconds, 3),
                    "busy_share": round(time.busy_share, 4),
                    "waiting_share": round(1 - time.busy_share, 4),
                }
                for stage, time in self.stages.items()
            },
            "is_stopping": self.is_stopping,
            "clips_per_second": round(self.clips_per_second, 4),
            "windows_per_second": round(self.windows_per_second, 4),
            "eta_seconds": None if self.eta_seconds is None else round(self.eta_seconds, 1),
            "quarantine_rate": round(self.quarantine_rate, 4),
            "gpu_wait": None if self.gpu_wait is None else round(self.gpu_wait, 4),
        }


def figures_from_json(parsed: Mapping[str, Any]) -> Figures:
    """Inverse of `Figures.to_json`; raises ValueError for anything that is none of it."""
    try:
        counts = {name: parsed[name] for name in _COUNTS}
        causes, stages = dict(parsed["causes"]), dict(parsed["stages"])
        if not all(type(count) is int for count in (*counts.values(), *causes.values())):
            raise ValueError("a count is no whole number")
        return Figures(
            seconds=_finite(parsed["seconds"]),
            causes=causes,
            stages={
                stage: StageTime(
                    stage=stage,
                    busy_seconds=_finite(stages[stage]["busy_seconds"]),
                    waiting_seconds=_finite(stages[stage]["waiting_seconds"]),
                )
                for stage in get_args(Stage)
                if stage in stages
            },
            is_stopping=parsed["is_stopping"] is True,
            **counts,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"figures of a run lack or misname {error}") from error


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)
