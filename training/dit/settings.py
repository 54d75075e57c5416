"""Settings of a DiT run: the tables of a preset."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from latents.posterior import Draw
from training.diffusion.objective import LossWeighting
from training.diffusion.tasks import TaskProbabilities
from training.dit.config import DiTConfig
from training.optim import OptimisationSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """The table ``[data]``."""

    draw: Draw = "mode"
    """What is read of a posterior: its mean, as the paper's code does, or a draw."""
    validation_share: float = 0.1
    """Share of the sources that is held out, where people named no split."""
    silent: Literal["keep", "skip"] = "keep"
    """Clips without audible sound are used all the same, or neither trained on, nor validated on,
    nor whitened by."""
    silent_below_dbfs: int = -80
    """Root mean square, in dB of full scale, under which a clip counts as silent."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; it must lie in [0, 1)")
        if self.silent not in ("keep", "skip"):
            raise ValueError(f"data.silent is {self.silent!r}; it must be 'keep' or 'skip'")
        if not -120 <= self.silent_below_dbfs <= 0:
            raise ValueError(
                f"data.silent_below_dbfs is {self.silent_below_dbfs}; it must be between -120 and 0"
            )

    @property
    def audible_from_dbfs(self) -> float:
        """Loudness from which clips are used; minus infinity where silent ones are kept."""
        return self.silent_below_dbfs if self.silent == "skip" else -math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionSettings:
    """The table ``[diffusion]``."""

    num_timesteps: int = 1000
    first_beta: float = 0.00085
    last_beta: float = 0.0120
    loss: LossWeighting = "sum"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSettings:
    """The table ``[validation]``."""

    every_steps: int = 1000
    """Steps between two validations."""
    num_windows: int = 256
    """Held-out windows that are looked at, spread evenly; fewer where there are fewer."""
    draws: int = 4
    """Timesteps of each window and task, one in each of as many equal parts of the schedule."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("every_steps", "num_windows", "draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTRunSettings:
    """All tables of a DiT preset."""

    model: DiTConfig
    optimisation: OptimisationSettings
    data: DataSettings = field(default_factory=DataSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    tasks: TaskProbabilities = field(default_factory=TaskProbabilities)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
