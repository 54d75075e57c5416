"""What training minimises, its figures by timestep, and what a linear denoiser would reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.diffusion.pair import Latents
from training.diffusion.schedule import NoiseSchedule

LossWeighting = Literal["sum", "mean"]
"""How the two modalities' losses add up: ``sum`` as in the authors' code, ``mean`` (a half of each)
as in the paper. They differ by a factor of 2, which Adam all but cancels."""

_WEIGHTS: Mapping[LossWeighting, float] = {"sum": 1.0, "mean": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseLoss:
    """Mean squared errors of predicted noise, float32."""

    total: Tensor
    """(): what training minimises."""
    video: Tensor
    """(batch,): of each sample's video latent. Its mean is the modality's loss."""
    audio: Tensor
    """(batch,)."""


def noise_loss(
    prediction: Latents, noise: Latents, *, weighting: LossWeighting = "sum"
) -> NoiseLoss:
    """The loss of predicting noise.

    A modality that was given as condition counts like any other, as in the authors' code.
    """
    errors = prediction.map(_squared_error, noise)
    video, audio = errors.video.mean((1, 2, 3)), errors.audio.mean((1, 2, 3))
    total = _WEIGHTS[weighting] * (video.mean() + audio.mean())
    return NoiseLoss(total=total, video=video, audio=audio)


def _squared_error(prediction: Tensor, noise: Tensor) -> Tensor:
    if prediction.shape != noise.shape:
        raise ValueError(
            f"the prediction has shape {tuple(prediction.shape)}, the noise {tuple(noise.shape)}"
        )
    return (prediction.float() - noise.float()).square()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TimestepBuckets:
    """Losses summed by timestep, in buckets of equal width; those of two batches add up."""

    count: Tensor
    """float64 (bucket,): samples."""
    video_sum: Tensor
    """float64 (bucket,)."""
    audio_sum: Tensor
    """float64 (bucket,)."""

    def __add__(self, other: TimestepBuckets) -> TimestepBuckets:
        return TimestepBuckets(
            count=self.count + other.count,
            video_sum=self.video_sum + other.video_sum,
            audio_sum=self.audio_sum + other.audio_sum,
        )

    @property
    def video(self) -> Tensor:
        """Mean loss, float64 (bucket,); NaN where there was no sample."""
        return self.video_sum / self.count

    @property
    def audio(self) -> Tensor:
        """Mean loss, float64 (bucket,); NaN where there was no sample."""
        return self.audio_sum / self.count


def bucket_losses(
    loss: NoiseLoss, timesteps: Tensor, *, num_timesteps: int = 1000, num_buckets: int = 10
) -> TimestepBuckets:
    """A batch's losses by timestep, on the CPU.

    Bucket i is of timesteps in [i, i + 1) · num_timesteps / num_buckets.
    """
    if not 1 <= num_buckets <= num_timesteps:
        raise ValueError(f"num_buckets is {num_buckets}; it must be 1 ... {num_timesteps}")
    buckets = timesteps.cpu() * num_buckets // num_timesteps

    def add_up(values: Tensor) -> Tensor:
        # On the CPU, where values are added in order.
        values = values.detach().cpu().double()
        return torch.zeros(num_buckets, dtype=torch.float64).index_add(0, buckets, values)

    return TimestepBuckets(
        count=add_up(torch.ones(len(timesteps))),
        video_sum=add_up(loss.video),
        audio_sum=add_up(loss.audio),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearDenoiser:
    """The best prediction of noise that is a multiple of the noisy value: a baseline to beat.

    For clean values of mean 0 and variance v per channel, noise and noisy value have covariance
    √(1 - ᾱ), and the noisy value has variance ᾱ·v + 1 - ᾱ, so the best multiple is
    √(1 - ᾱ) / (ᾱ·v + 1 - ᾱ); its expected loss is ᾱ·v / (ᾱ·v + 1 - ᾱ). On whitened latents, v = 1:
    √(1 - ᾱ) and ᾱ. For Gaussian values, independent of one another, no denoiser is better.
    """

    schedule: NoiseSchedule
    video_variance: Tensor
    """float64 (channel,), of clean latents."""
    audio_variance: Tensor

    def __call__(self, noisy: Latents, timesteps: Tensor) -> Latents:
        """Predicted noise."""
        table = self.schedule.alpha_bars
        alpha_bars = table[timesteps.to(table.device)]

        def predict(noisy: Tensor, variance: Tensor) -> Tensor:
            signal, sigma_squared = _parts(alpha_bars, variance)
            gain = (sigma_squared.sqrt() / (signal + sigma_squared)).to(noisy)
            return gain[:, :, None, None] * noisy

        return Latents(
            video=predict(noisy.video, self.video_variance),
            audio=predict(noisy.audio, self.audio_variance),
        )

    def expected_video_loss(self) -> Tensor:
        """Mean squared error over the channels, float64 (timestep,)."""
        return self._expected_loss(self.video_variance)

    def expected_audio_loss(self) -> Tensor:
        """Mean squared error over the channels, float64 (timestep,)."""
        return self._expected_loss(self.audio_variance)

    def _expected_loss(self, variance: Tensor) -> Tensor:
        signal, sigma_squared = _parts(self.schedule.alpha_bars, variance)
        return (signal / (signal + sigma_squared)).mean(1)


def _parts(alpha_bars: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of signal (timestep, channel) and of noise (timestep, 1) in noisy values."""
    column = alpha_bars[:, None]
    return column * variance.to(column), 1 - column
