"""A small signal decoder: perceptual latents of a window to KL latents, in one step.

As in MM-LDM, one network decodes the sound and every frame: sound and pictures have a stem of
their own, which is their prompt, and share the trunk behind it. It is not MM-LDM's diffusion UNet.
It predicts the clean KL latents at once, from the latents alone. It cannot draw what the latents
do not hold: where they are undecided, its pictures are blurred.

Beside the trunk runs a linear decoder, so that the whole starts as a linear codec.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from latents.models.encoder_blocks import GroupNorm, ZeroConv2d, ZeroStart

VIDEO_STRIDE = 2
"""Rows of a KL latent for one row of the video's perceptual latent."""
AUDIO_STRIDE = 4
"""The same for sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalDecoderConfig:
    """Architecture of a signal decoder."""

    latent_channels: int = 16
    """Channels of the perceptual latents."""
    out_channels: int = 4
    """Channels of a KL latent."""
    frames: int = 16
    """Frames of a window. A frame's index picks its kernel in the last layer."""
    channels: int = 64
    """Channels of the trunk."""
    coarse_blocks: int = 4
    """Residual blocks at half the size of a KL latent."""
    fine_blocks: int = 2
    """Residual blocks at its full size."""
    norm_groups: int = 8
    """Groups of a group norm."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 1 <= value <= 1024:
                raise ValueError(f"{field.name} is {value!r}; wanted an integer from 1 to 1024")
        if self.channels % self.norm_groups:
            raise ValueError(
                f"{self.channels} channels do not divide into {self.norm_groups} groups"
            )


class SignalDecoder(nn.Module):
    """Perceptual latents to KL latents; see the module's own words.

    It computes in whitened KL latents: those of each modality, less their mean, divided by their
    spread, which are kept with the weights.
    """

    def __init__(self, config: SignalDecoderConfig) -> None:
        super().__init__()
        self.config = config
        latent, width = config.latent_channels, config.channels
        self.video_stem = nn.Conv2d(latent, width, 3, padding=1)
        self.audio_stem = nn.Conv2d(latent, width, 3, padding=1)
        coarse = [
            _Block(width, norm_groups=config.norm_groups) for _ in range(config.coarse_blocks)
        ]
        fine = [_Block(width, norm_groups=config.norm_groups) for _ in range(config.fine_blocks)]
        self.trunk = nn.Sequential(
            *coarse,
            nn.Upsample(scale_factor=VIDEO_STRIDE),
            *fine,
            GroupNorm(width, groups=config.norm_groups),
            nn.SiLU(),
        )
        num_video = config.frames * config.out_channels
        self.video_head = ZeroConv2d(width, num_video, 3, padding=1)
        self.audio_head = ZeroConv2d(width, config.out_channels, 3, padding=1)
        self.video_shortcut = _expansion(latent, num_video, VIDEO_STRIDE)
        self.audio_shortcut = _expansion(latent, config.out_channels, AUDIO_STRIDE)
        # One column each: mean, then what is divided by.
        self.register_buffer("video_whitening", _identity_whitening(config.out_channels))
        self.register_buffer("audio_whitening", _identity_whitening(config.out_channels))
        self.video_whitening: Tensor
        self.audio_whitening: Tensor

    def decode_video(self, latents: Tensor) -> Tensor:
        """Every frame's KL latent.

        Args:
            latents: z_v (batch, latent_channels, row / 2, column / 2).

        Returns:
            KL means times the KL-VAE's scaling factor, float32 (batch, frame, channel, row,
            column).
        """
        return _unwhitened(self.whitened_video(latents), self.video_whitening)

    def decode_audio(self, latents: Tensor) -> Tensor:
        """The KL latent of the mel image.

        Args:
            latents: z_a (batch, latent_channels, row / 4, column / 4).

        Returns:
            KL means times the KL-VAE's scaling factor, float32 (batch, channel, row, column).
        """
        return _unwhitened(self.whitened_audio(latents), self.audio_whitening)

    def whitened_video(self, latents: Tensor) -> Tensor:
        """As `decode_video`, but whitened, as for training."""
        features = self.trunk(self.video_stem(latents))
        frames: Tensor = self.video_shortcut(latents) + self.video_head(features)
        by_frame: Tensor = rearrange(frames, "b (t c) h w -> b t c h w", t=self.config.frames)
        return by_frame

    def whitened_audio(self, latents: Tensor) -> Tensor:
        """As `decode_audio`, but whitened, as for training."""
        coarse = functional.interpolate(
            self.audio_stem(latents), scale_factor=AUDIO_STRIDE // VIDEO_STRIDE
        )
        image: Tensor = self.audio_shortcut(latents) + self.audio_head(self.trunk(coarse))
        return image

    def whiten_video(self, latents: Tensor) -> Tensor:
        """Scaled KL means (..., channel, row, column) to what `whitened_video` predicts."""
        return _whitened(latents, self.video_whitening)

    def whiten_audio(self, latents: Tensor) -> Tensor:
        """Scaled KL means (..., channel, row, column) to what `whitened_audio` predicts."""
        return _whitened(latents, self.audio_whitening)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection, on (batch, channel, row, column)."""

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            GroupNorm(channels, groups=norm_groups),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            GroupNorm(channels, groups=norm_groups),
            nn.SiLU(),
            ZeroConv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        changed: Tensor = x + self.branch(x)
        return changed


class _ZeroConvTranspose2d(ZeroStart, nn.ConvTranspose2d):
    """A transposed convolution that starts at zero."""


def _expansion(in_channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    """A linear decoder whose neighbouring patches overlap by half."""
    return _ZeroConvTranspose2d(
        in_channels, out_channels, 2 * stride, stride=stride, padding=stride // 2
    )


def _identity_whitening(channels: int) -> Tensor:
    return torch.tensor([[0.0, 1.0]] * channels)


def _whitened(latents: Tensor, whitening: Tensor) -> Tensor:
    mean, scale = whitening.unbind(1)
    return (latents.float() - mean[:, None, None]) / scale[:, None, None]


def _unwhitened(whitened: Tensor, whitening: Tensor) -> Tensor:
    mean, scale = whitening.unbind(1)
    return whitened.float() * scale[:, None, None] + mean[:, None, None]
