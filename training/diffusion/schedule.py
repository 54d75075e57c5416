"""How much noise a timestep has, and the way between clean and noisy latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.diffusion.pair import Latents


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseSchedule:
    """ᾱ of each timestep: noisy = √ᾱ · clean + √(1 - ᾱ) · noise."""

    alpha_bars: Tensor
    """float64 (timestep,), falling, between 0 and 1. Timesteps count from 0, the least noise."""

    def __post_init__(self) -> None:
        table = self.alpha_bars
        if table.ndim != 1 or len(table) == 0 or table.dtype != torch.float64:
            raise ValueError(
                f"alpha_bars must be float64 (timestep,), got {table.dtype} {tuple(table.shape)}"
            )

    @property
    def num_timesteps(self) -> int:
        """T; the last timestep is T - 1."""
        return len(self.alpha_bars)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """With the table on a device, so that timesteps there are looked up without waiting."""
        return replace(self, alpha_bars=self.alpha_bars.to(device))

    def noised(self, clean: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        """Latents at their timesteps, int64 (batch,): √ᾱ · clean + √(1 - ᾱ) · noise."""
        alpha_bars = self._of(timesteps)

        def mix(clean: Tensor, noise: Tensor) -> Tensor:
            signal, sigma = _like(alpha_bars.sqrt(), clean), _like((1 - alpha_bars).sqrt(), clean)
            return signal * clean + sigma * noise

        return clean.map(mix, noise)

    def denoised(self, noisy: Latents, noise: Latents, timesteps: Tensor) -> Latents:
        """Inverse of `noised`: clean latents, given the noise or a prediction of it."""
        alpha_bars = self._of(timesteps)

        def unmix(noisy: Tensor, noise: Tensor) -> Tensor:
            signal, sigma = _like(alpha_bars.sqrt(), noisy), _like((1 - alpha_bars).sqrt(), noisy)
            return (noisy - sigma * noise) / signal

        return noisy.map(unmix, noise)

    def _of(self, timesteps: Tensor) -> Tensor:
        return self.alpha_bars[timesteps.to(self.alpha_bars.device)]


def linear_schedule(
    *, num_timesteps: int = 1000, first_beta: float = 0.00085, last_beta: float = 0.0120
) -> NoiseSchedule:
    """The "linear" schedule of latent diffusion: √β goes in equal steps from first to last."""
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}; it must be at least 1")
    if not 0 < first_beta <= last_beta < 1:
        raise ValueError(f"need 0 < first_beta <= last_beta < 1, got {first_beta} and {last_beta}")
    roots = torch.linspace(first_beta**0.5, last_beta**0.5, num_timesteps, dtype=torch.float64)
    return NoiseSchedule(alpha_bars=(1 - roots**2).cumprod(0))


def _like(per_sample: Tensor, latents: Tensor) -> Tensor:
    """(batch,) as (batch, 1, 1, 1) of the latents' type and device."""
    return per_sample.to(latents)[:, None, None, None]
