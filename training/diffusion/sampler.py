"""DDIM: from noise to latents in a few steps of a noise prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.diffusion.guidance import Predict
from training.diffusion.keyed_draws import keyed_noise
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.schedule import NoiseSchedule

StepNoise = Callable[[int], Latents]
"""Standard normal latents for the step from a timestep."""


def ddim_timesteps(num_steps: int, *, num_timesteps: int = 1000) -> list[int]:
    """The timesteps visited, rising: ⌊i · T / num_steps⌋ + 1.

    Where num_steps divides T these are the "uniform" ones of latent diffusion: {1, 21, ..., 981}
    for 50 of 1000. With as many steps as timesteps it is every timestep, from 0.

    Raises:
        ValueError: There are not that many timesteps.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 ... {num_timesteps}")
    if num_steps == num_timesteps:  # one more than each would be beyond the last
        return list(range(num_timesteps))
    return [index * num_timesteps // num_steps + 1 for index in range(num_steps)]


@torch.no_grad()
def ddim_sample(
    predict: Predict,
    initial: Latents,
    *,
    schedule: NoiseSchedule,
    num_steps: int = 50,
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
) -> Latents:
    """Latents from noise, by DDIM (arXiv 2010.02502, equation 12).

    As in latent diffusion the last step ends at ᾱ of timestep 0, not at 1: the result keeps noise
    of standard deviation √(1 - ᾱ_0), 0.029 with the default schedule.

    Args:
        predict: Noise of noisy latents at their timesteps, int64 (batch,).
        initial: Standard normal; its type and device are those of the result.
        schedule: The one that the denoiser was trained with.
        num_steps: Calls of ``predict``, at most one for each timestep.
        eta: 0 is deterministic; 1 has the variance of ancestral sampling.
        step_noise: Noise of each step where eta is above 0, by timestep.

    Raises:
        ValueError: Impossible num_steps or eta, or noise given or missing against eta.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must be between 0 and 1")
    if (step_noise is None) != (eta == 0):
        raise ValueError(f"step_noise goes with an eta above 0 and only with it; eta is {eta}")
    latents = initial
    for step in reversed(_steps(schedule, num_steps, eta)):
        timesteps = torch.full((len(latents),), step.timestep, device=latents.video.device)
        latents = latents.map(step.apply, predict(latents, timesteps))
        if step_noise is not None:
            latents = latents.map(step.add_noise, step_noise(step.timestep))
    return latents


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """From one timestep to the one visited next."""

    timestep: int
    alpha_bar: float
    next_alpha_bar: float
    sigma: float
    """Standard deviation of the noise added."""

    def apply(self, noisy: Tensor, noise: Tensor) -> Tensor:
        noise = noise.to(noisy)
        clean = (noisy - math.sqrt(1 - self.alpha_bar) * noise) / math.sqrt(self.alpha_bar)
        direction = math.sqrt(1 - self.next_alpha_bar - self.sigma**2)
        return math.sqrt(self.next_alpha_bar) * clean + direction * noise

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        return latents + self.sigma * noise.to(latents)


def _steps(schedule: NoiseSchedule, num_steps: int, eta: float) -> list[_Step]:
    """In order of timestep; sampling goes backwards."""
    table: list[float] = schedule.alpha_bars.tolist()
    steps = []
    following = table[0]
    for timestep in ddim_timesteps(num_steps, num_timesteps=len(table)):
        here = table[timestep]
        sigma = eta * math.sqrt((1 - following) / (1 - here) * (1 - here / following))
        steps.append(
            _Step(timestep=timestep, alpha_bar=here, next_alpha_bar=following, sigma=sigma)
        )
        following = here
    return steps


def initial_noise(shapes: LatentShapes, *, seed: int, indices: Sequence[int]) -> Latents:
    """Where samples start, float32 on the CPU, keyed by (seed, index) of each.

    A sample is the same at any batch size, as far as the denoiser does not look at its neighbours.
    """
    keys = [(index,) for index in indices]
    return keyed_noise(shapes, seed=seed, stream="initial", keys=keys)


def keyed_step_noise(shapes: LatentShapes, *, seed: int, indices: Sequence[int]) -> StepNoise:
    """Noise of each step, keyed by (seed, index, timestep), for an eta above 0."""

    def step_noise(timestep: int) -> Latents:
        keys = [(index, timestep) for index in indices]
        return keyed_noise(shapes, seed=seed, stream="step", keys=keys)

    return step_noise
