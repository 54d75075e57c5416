"""The modal encoders of MM-LDM: KL latents of a window to moments of its perceptual latents.

They read KL means times the KL-VAE's scaling factor. As in the authors' code, the video encoder
sees a few key frames and a learned query frame, at which its moments are read; ``key_frames`` can
name all of a window's frames instead, which is what the paper says.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from einops import repeat
from torch import Tensor, nn

from latents.models.encoder_blocks import (
    MomentHead,
    ResBlock,
    SpatialAttention,
    TemporalAttention,
    ZeroConv3d,
    downsample,
)
from latents.models.modal_encoder_config import AudioEncoderConfig, VideoEncoderConfig


class VideoEncoder(nn.Module):
    """A window's KL latents to the moments of its video latent."""

    def __init__(self, config: VideoEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.query_frame = nn.Parameter(
            torch.randn(config.in_channels, config.in_size, config.in_size)
        )
        self.trunk = _trunk(config, in_channels=config.in_channels, in_time=True)
        self.mean_head = _mean_head(config)
        self.logvar_head = _head(config, last=ZeroConv3d)
        self.shortcut = _shortcut(config, len(config.key_frames) * config.in_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Posterior moments.

        Args:
            latents: Scaled KL means (batch, frame, channel, row, column), every frame of a window.

        Returns:
            float32 (batch, 2 * out_channels, row / 2, column / 2) for two levels: mean, then
            log-variance clamped to [-30, 20].
        """
        query = repeat(self.query_frame, "c h w -> b c h w", b=len(latents))
        key_frames = [latents[:, index] for index in self.config.key_frames]
        features = self.trunk(torch.stack([query, *key_frames], dim=2))
        mean = self.mean_head(features)
        if self.shortcut is not None:
            mean = mean + self.shortcut(torch.cat(key_frames, dim=1))
        return _moments(mean, self.logvar_head(features))


class AudioEncoder(nn.Module):
    """The KL latent of a window's mel image to the moments of its audio latent."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.content = nn.Parameter(torch.randn(config.in_channels, config.in_size, config.in_size))
        self.trunk = _trunk(config, in_channels=2 * config.in_channels, in_time=False)
        self.mean_head = _mean_head(config)
        self.logvar_head = _head(config, last=ZeroConv3d)
        self.shortcut = _shortcut(config, config.in_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Posterior moments.

        Args:
            latents: Scaled KL means (batch, channel, row, column).

        Returns:
            float32 (batch, 2 * out_channels, row / 4, column / 4) for three levels: mean, then
            log-variance clamped to [-30, 20].
        """
        content = repeat(self.content, "c h w -> b c h w", b=len(latents))
        features = self.trunk(torch.cat([latents, content], dim=1)[:, :, None])
        mean = self.mean_head(features)
        if self.shortcut is not None:
            mean = mean + self.shortcut(latents)
        return _moments(mean, self.logvar_head(features))


def _trunk(
    config: VideoEncoderConfig | AudioEncoderConfig, *, in_channels: int, in_time: bool
) -> nn.Sequential:
    """Everything before the heads, on (batch, channel, time, row, column)."""
    attention = {"head_channels": config.head_channels, "norm_groups": config.norm_groups}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv_in"] = nn.Conv3d(in_channels, config.channels, 3, padding=1)
    before = config.channels
    for level, multiplier in enumerate(config.multipliers):
        if level > 0:
            layers[f"down_{level}"] = downsample(before)
        width = config.channels * multiplier
        for block in range(config.num_res_blocks):
            layers[f"res_{level}_{block}"] = ResBlock(before, width, norm_groups=config.norm_groups)
            before = width
            if config.in_size >> level in config.attention_sizes:
                layers[f"spatial_{level}_{block}"] = SpatialAttention(width, **attention)
                if in_time:
                    layers[f"temporal_{level}_{block}"] = TemporalAttention(width, **attention)
    return nn.Sequential(layers)


def _head(config: VideoEncoderConfig | AudioEncoderConfig, *, last: type[nn.Conv3d]) -> MomentHead:
    return MomentHead(
        config.channels * config.multipliers[-1],
        config.out_channels,
        norm_groups=config.norm_groups,
        last=last,
    )


def _mean_head(config: VideoEncoderConfig | AudioEncoderConfig) -> MomentHead:
    """With a shortcut it starts at zero, so that the encoder starts as the shortcut."""
    return _head(config, last=ZeroConv3d if config.shortcut_kernel else nn.Conv3d)


def _shortcut(
    config: VideoEncoderConfig | AudioEncoderConfig, in_channels: int
) -> nn.Conv2d | None:
    """Key frames, side by side on the channels, to the mean."""
    kernel, stride = config.shortcut_kernel, 2 ** (len(config.multipliers) - 1)
    if not kernel:
        return None
    return nn.Conv2d(
        in_channels, config.out_channels, kernel, stride=stride, padding=(kernel - stride) // 2
    )


def _moments(mean: Tensor, logvar: Tensor) -> Tensor:
    return torch.cat([mean.float(), logvar.float().clamp(-30, 20)], dim=1)
