"""Which task a sample trains: both modalities from noise (svg), or one given the other.

A task is what the denoiser is told: whether it has its learned context, and which modality's clean
latent is given to it. Both modalities are noised and predicted whatever the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from training.diffusion.keyed_draws import Key, keyed_uniforms
from training.diffusion.pair import Latents

Task = Literal["svg", "a2v", "v2a"]
"""Sounding video from nothing, video given audio, audio given video."""
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskProbabilities:
    """How often samples train without context, and with a modality given.

    Context goes first: a sample without it is given nothing. Of the rest, audio and video are
    given independently, and where both would be, neither is. By default that makes 10 % without
    context, 4.275 % of each conditional task, and 81.45 % plain svg.
    """

    no_context: float = 0.1
    audio_to_video: float = 0.05
    video_to_audio: float = 0.05

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Condition:
    """What the denoiser is told beside the noisy latents and their timesteps."""

    has_context: Tensor
    """bool (batch,): false where the learned context is replaced by zeros."""
    has_audio: Tensor
    """bool (batch,): whether the clean audio latent is given."""
    has_video: Tensor
    """bool (batch,): whether the clean video latent is given."""
    latents: Latents
    """Clean latents of the modality that is given; 0 where none is."""

    def without_context(self) -> Condition:
        """The same latents given, and no context."""
        return replace(self, has_context=torch.zeros_like(self.has_context))

    def without_latents(self) -> Condition:
        """The same context, and no latents given."""
        nothing = torch.zeros_like(self.has_context)
        latents = self.latents.map(torch.zeros_like)
        return replace(self, has_audio=nothing, has_video=nothing, latents=latents)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnTasks:
    """The tasks of a batch, each bool (batch,)."""

    has_context: Tensor
    gives_audio: Tensor
    gives_video: Tensor

    def condition(self, clean: Latents) -> Condition:
        """What the denoiser is told of these clean latents, on their device."""
        device = clean.video.device
        has_audio, has_video = self.gives_audio.to(device), self.gives_video.to(device)
        return Condition(
            has_context=self.has_context.to(device),
            has_audio=has_audio,
            has_video=has_video,
            latents=Latents(
                video=_where(has_video, clean.video), audio=_where(has_audio, clean.audio)
            ),
        )


def draw_tasks(probabilities: TaskProbabilities, *, seed: int, keys: Sequence[Key]) -> DrawnTasks:
    """Each sample's task, keyed by (seed, key), on the CPU."""
    context, audio, video = keyed_uniforms(3, seed=seed, stream="task", keys=keys).unbind(1)
    has_context = context >= probabilities.no_context
    a2v = audio < probabilities.audio_to_video
    v2a = video < probabilities.video_to_audio
    return DrawnTasks(
        has_context=has_context,
        gives_audio=has_context & a2v & ~v2a,
        gives_video=has_context & v2a & ~a2v,
    )


def condition_for(task: Task, clean: Latents) -> Condition:
    """What the denoiser is told when sampling: context always, and the task's given modality.

    Args:
        task: What is sampled.
        clean: The latents to sample beside. Only the given modality's values matter; of the
            other, and for svg of both, the shape does.
    """
    if task not in get_args(Task):
        raise ValueError(f"task is {task!r}; it must be one of {get_args(Task)}")
    every = torch.ones(len(clean), dtype=torch.bool)
    tasks = DrawnTasks(
        has_context=every,
        gives_audio=every if task == "a2v" else ~every,
        gives_video=every if task == "v2a" else ~every,
    )
    return tasks.condition(clean)


def _where(given: Tensor, clean: Tensor) -> Tensor:
    return torch.where(given[:, None, None, None], clean, torch.zeros_like(clean))
