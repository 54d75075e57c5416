"""Guidance: moving a prediction away from what the denoiser says when it is told less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from training.diffusion.pair import Latents
from training.diffusion.tasks import Condition

Denoise = Callable[[Latents, Tensor, Condition], Latents]
"""Predicted noise of noisy latents at their timesteps, int64 (batch,), under a condition."""

Predict = Callable[[Latents, Tensor], Latents]
"""Predicted noise of noisy latents at their timesteps: what a sampler asks for."""

GuidanceKind = Literal["context", "condition"]
"""What is left out in the branch moved away from. ``context``, the authors' code: the learned
context; given latents are in both branches. ``condition``, the paper's equation 9: the given
latents; the context is in both branches. With nothing given (svg) these two branches are equal, and
guidance by condition changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceScales:
    """s of each modality: 1 is the conditional prediction, 0 the unconditional one."""

    video: float = 9.0
    audio: float = 9.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.video) or not math.isfinite(self.audio):
            raise ValueError(f"guidance scales must be finite, got {self}")


def guided(unconditional: Latents, conditional: Latents, scales: GuidanceScales) -> Latents:
    """ε_u + s · (ε_c - ε_u) in each modality.

    The paper prints equation 9 as φ·ε_c - (1 - φ)·ε_u; its minus is an error for a plus, with which
    it is this. A modality with scale 1 is the conditional prediction, bit for bit.
    """
    return Latents(
        video=_extrapolate(unconditional.video, conditional.video, scales.video),
        audio=_extrapolate(unconditional.audio, conditional.audio, scales.audio),
    )


def _extrapolate(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    if scale == 1:  # exactly: the sum below would round
        return conditional
    return unconditional + scale * (conditional - unconditional)


def guided_predict(
    denoise: Denoise,
    condition: Condition,
    *,
    kind: GuidanceKind = "context",
    scales: GuidanceScales,
) -> Predict:
    """A denoiser under a condition and guidance, as a sampler wants it.

    It runs the denoiser twice for a prediction, and once where both scales are 1.
    """
    if kind not in get_args(GuidanceKind):
        raise ValueError(f"kind is {kind!r}; it must be one of {get_args(GuidanceKind)}")
    is_guided = scales != GuidanceScales(video=1.0, audio=1.0)
    weaker = condition.without_context() if kind == "context" else condition.without_latents()

    def predict(noisy: Latents, timesteps: Tensor) -> Latents:
        conditional = denoise(noisy, timesteps, condition)
        if not is_guided:
            return conditional
        return guided(denoise(noisy, timesteps, weaker), conditional, scales)

    return predict
