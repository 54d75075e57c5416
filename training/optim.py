"""How weights are moved: the settings of a run's optimiser, and its learning rate by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.optim import AdamW

TrainPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimisationSettings:
    """The table ``[optimisation]`` of a preset."""

    steps: int
    """Optimiser steps in all."""
    batch_size: int
    """Windows of a step."""
    learning_rate: float = 1e-4
    """Of AdamW, after the warm-up and before the decay."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from zero."""
    decay_steps: int = 0
    """Last steps, over which the rate falls linearly to zero."""
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; none by default."""
    ema_decay: float = 0.9999
    precision: TrainPrecision = "fp32"
    """``bf16`` is autocast; weights, their average and the optimiser stay float32."""
    seed: int = 0
    checkpoint_steps: int = 1000
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if min(self.warmup_steps, self.decay_steps) < 0 or (
            self.warmup_steps + self.decay_steps > self.steps
        ):
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit "
                f"into {self.steps} steps; set them too, such as --set warmup_steps=0"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be above 0")

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step, from 0: linear warm-up, constant, linear decay to zero."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.learning_rate * min(1.0, rise, fall)


def make_optimizer(parameters: Iterable[Tensor], settings: OptimisationSettings) -> AdamW:
    """AdamW as the paper's code has it, but for what the settings name."""
    return AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
    )
