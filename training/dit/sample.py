"""Latents of new windows from a trained DiT; nothing but torch is needed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from latents.errors import ConfigError
from training.diffusion.guidance import GuidanceKind, GuidanceScales, guided_predict
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.sampler import ddim_sample, initial_noise, keyed_step_noise
from training.diffusion.tasks import Task, condition_for
from training.dit.files import TrainedDiT


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How latents are sampled."""

    num_steps: int = 50
    eta: float = 0.0
    """0: deterministic given the noise at the start; 1: as much noise as was taken away."""
    guidance: GuidanceKind = "context"
    scales: GuidanceScales = field(default_factory=lambda: GuidanceScales(video=1.0, audio=1.0))
    """1: no guidance, and half the work."""


@torch.no_grad()
def sample_latents(
    trained: TrainedDiT,
    task: Task,
    *,
    seed: int,
    indices: Sequence[int],
    given: Latents | None = None,
    settings: SamplingSettings | None = None,
    batch_size: int = 1,
) -> Latents:
    """Samples by their numbers, each keyed by (seed, number), on the CPU.

    With a batch size of 1 samples are the same bytes whatever else is sampled beside them. Larger
    batches, for GPUs, change the last bits of what the model computes.

    Args:
        trained: The model, on the device to use.
        task: What is sampled from what.
        seed: Of all randomness.
        indices: Which samples.
        given: For a2v and v2a, the perceptual latents to go by, one for each sample; of the
            modality that is sampled, only the shape counts.
        settings: How.
        batch_size: Samples at a time.

    Returns:
        Perceptual latents, float32, of the scale that the autoencoder gives and takes.

    Raises:
        ConfigError: A condition is missing, or of other shapes.
    """
    settings = settings or SamplingSettings()
    shapes = LatentShapes(
        video=trained.model.config.video_shape, audio=trained.model.config.audio_shape
    )
    clean = _whitened_condition(trained, task, given, shapes, num=len(indices))
    parts = [
        _sample(trained, task, seed, indices[first : first + batch_size], part, settings)
        for first, part in zip(
            range(0, len(indices), batch_size), _split(clean, batch_size), strict=True
        )
    ]
    sampled = Latents(
        video=torch.cat([part.video for part in parts]),
        audio=torch.cat([part.audio for part in parts]),
    )
    return trained.whitening.unwhiten(sampled)


def _sample(
    trained: TrainedDiT,
    task: Task,
    seed: int,
    indices: Sequence[int],
    clean: Latents,
    settings: SamplingSettings,
) -> Latents:
    device = next(trained.model.parameters()).device
    shapes = clean.shapes
    predict = guided_predict(
        trained.model.eval(),
        condition_for(task, clean.to(device)),
        kind=settings.guidance,
        scales=settings.scales,
    )
    step_noise = keyed_step_noise(shapes, seed=seed, indices=indices) if settings.eta else None
    sampled = ddim_sample(
        predict,
        initial_noise(shapes, seed=seed, indices=indices).to(device),
        schedule=trained.schedule,
        num_steps=settings.num_steps,
        eta=settings.eta,
        step_noise=step_noise,
    )
    return sampled.to("cpu")


def _whitened_condition(
    trained: TrainedDiT, task: Task, given: Latents | None, shapes: LatentShapes, *, num: int
) -> Latents:
    """What is given, whitened; zeros for svg, of which only the shape counts."""
    if task == "svg":
        return Latents(video=torch.zeros(num, *shapes.video), audio=torch.zeros(num, *shapes.audio))
    if given is None:
        raise ConfigError(f"{task} samples beside a condition; give one for each sample")
    if len(given) != num or given.shapes != shapes:
        raise ConfigError(
            f"{num} samples of {shapes} were asked for, but {len(given)} conditions of "
            f"{given.shapes} were given"
        )
    return trained.whitening.whiten(given)


def _split(latents: Latents, size: int) -> list[Latents]:
    video, audio = torch.split(latents.video, size), torch.split(latents.audio, size)
    return [Latents(video=v, audio=a) for v, a in zip(video, audio, strict=True)]
