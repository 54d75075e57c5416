"""Training a small multi-modal autoencoder on windows of KL latents.

It learns to give back every frame of a window, and its mel image, from z_v and z_a in one step; the
loss is the squared error of whitened KL latents, and a little of the KL divergence. MM-LDM's other
losses belong to its diffusion decoder and are not here.

A step is a function of the weights, the optimiser and the step's number. A run that was stopped
and resumed on the CPU ends with the same bytes as one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latents.models.autoencoder_files import Autoencoder
from latents.posterior import posterior_draw, split_moments
from training.ema import ExponentialMovingAverage
from training.optim import OptimisationSettings
from training.optimised_model import OptimisedModel, by_path
from training.picture_stream import generator_of
from training.window_latents import WindowBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """The table ``[loss]``."""

    kl_weight: float = 2e-7
    """Weight of the KL divergence, summed over a latent, beside the mean squared errors."""
    audio_weight: float = 1.0
    """Weight of the mel image's error beside that of the frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """One step."""

    step: int
    """Steps done."""
    video_error: float
    """Mean squared error of whitened KL latents, of draws from the posterior."""
    audio_error: float
    kl: float
    """KL divergence per latent element, in nats."""
    grad_norm: float
    learning_rate: float


class AutoencoderTrainer:
    """An autoencoder in training.

    Args:
        autoencoder: Trained in place, on the device it is on.
        optimisation: How weights are moved.
        loss: What is minimised.
        pinned: What a resumed run must find unchanged, as JSON values.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        optimisation: OptimisationSettings,
        *,
        loss: LossSettings,
        pinned: Mapping[str, Any],
    ) -> None:
        self.autoencoder = autoencoder
        self._weights = OptimisedModel(autoencoder, optimisation)
        self._optimisation, self._loss = optimisation, loss
        self._pinned = dict(pinned)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._weights.step

    @property
    def average(self) -> ExponentialMovingAverage:
        """Of the weights; what is kept in the end."""
        return self._weights.average

    def train(
        self,
        batch_at: Callable[[int], WindowBatch],
        *,
        on_step: Callable[[TrainProgress], None],
    ) -> None:
        """Trains from the present step to the last one.

        Args:
            batch_at: Gives the windows of a step.
            on_step: Called after each step.
        """
        while self.step < self._optimisation.steps:
            on_step(self._train_step(batch_at(self.step)))

    def _train_step(self, batch: WindowBatch) -> TrainProgress:
        video_error, audio_error, kl, num_numbers = self._errors(batch)
        moved = self._weights.move(
            video_error
            + self._loss.audio_weight * audio_error
            + self._loss.kl_weight * kl / len(batch.video)
        )
        video, audio, summed = torch.stack([video_error, audio_error, kl]).detach().tolist()
        return TrainProgress(
            step=self.step,
            video_error=video,
            audio_error=audio,
            kl=summed / num_numbers,
            grad_norm=moved.grad_norm,
            learning_rate=moved.learning_rate,
        )

    def _errors(self, batch: WindowBatch) -> tuple[Tensor, Tensor, Tensor, int]:
        """Mean squared errors, summed divergence, and over how many numbers it was summed."""
        model, decoder = self.autoencoder, self.autoencoder.signal_decoder
        rng = generator_of(self._optimisation.seed, "posterior", self.step)
        device = self._weights.device
        video, audio = batch.video.to(device), batch.audio.to(device)
        with self._weights.autocast():
            moments = (model.video_encoder(video), model.audio_encoder(audio))
            z_v, z_a = (_drawn(m, rng) for m in moments)
            whitened = decoder.whitened_video(z_v), decoder.whitened_audio(z_a)
        return (
            _squared_error(whitened[0], decoder.whiten_video(video)),
            _squared_error(whitened[1], decoder.whiten_audio(audio)),
            torch.stack([_divergence(m) for m in moments]).sum(),
            sum(m.numel() // 2 for m in moments),
        )

    def save(self, path: Path) -> None:
        """Writes a checkpoint; see `OptimisedModel.save`."""
        self._weights.save(path, run=self._run())

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint; see `OptimisedModel.restore`."""
        self._weights.restore(path, run=self._run())

    def _run(self) -> dict[str, Any]:
        tables = {"optimisation": asdict(self._optimisation), "loss": asdict(self._loss)}
        return by_path(tables) | self._pinned


def _drawn(moments: Tensor, rng: torch.Generator) -> Tensor:
    shape = (len(moments), moments.shape[1] // 2, *moments.shape[2:])
    return posterior_draw(moments, torch.randn(shape, generator=rng).to(moments.device))


def _squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found.float() - wanted).square().mean()


def _divergence(moments: Tensor) -> Tensor:
    """From the standard normal, in nats, summed over all numbers of a batch."""
    mean, logvar = split_moments(moments)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
