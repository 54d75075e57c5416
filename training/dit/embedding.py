"""What enters the diffusion transformer as tokens: context, noisy latents and their conditions."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from training.diffusion.pair import Latents
from training.diffusion.tasks import Condition
from training.dit.config import DiTConfig
from training.dit.layers import Linear, without_autocast


class LatentTokens(nn.Module):
    """One latent to its EOS token and, behind it, a token for each position."""

    def __init__(self, config: DiTConfig, *, size: int) -> None:
        super().__init__()
        channels, width = config.latent_channels, config.width
        self.null_is_nothing = config.zero_condition
        self.noisy = Linear(channels, width, start="glorot")
        self.condition = Linear(
            channels, width, start="zero" if config.zero_condition else "fan_in"
        )
        self.eos = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(size**2, width))
        self.sin_cos: Tensor
        self.register_buffer("sin_cos", sin_cos_table(size, width=width), persistent=False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Sets the EOS token and the learned positions; the linear layers draw themselves."""
        self.eos.normal_(generator=generator)
        self.position.normal_(std=0.01, generator=generator)

    def forward(self, noisy: Tensor, *, given: Tensor, is_given: Tensor) -> Tensor:
        """Float32 tokens (batch, 1 + row * column, width), positions in raster order.

        Args:
            noisy: (batch, channel, row, column).
            given: The clean latents, of the same shape.
            is_given: bool (batch,). Where it is false, `given` is not read. A given latent of zeros
                is a condition like any other.
        """
        is_given = is_given[:, None, None]
        with without_autocast(noisy):
            known = self.condition(torch.where(is_given, _rasterise(given), 0.0))
            if self.null_is_nothing:
                known = torch.where(is_given, known, 0.0)
            tokens = self.noisy(_rasterise(noisy)) + known + self.position + self.sin_cos
        return torch.cat([repeat(self.eos, "d -> b 1 d", b=len(noisy)), tokens], dim=1)


class TokenEmbedding(nn.Module):
    """The whole sequence: context, EOS_a, audio, EOS_v, video."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.empty(config.context_tokens, config.context_width))
        self.context_projection = Linear(config.context_width, config.width, start="glorot")
        self.audio = LatentTokens(config, size=config.audio_size)
        self.video = LatentTokens(config, size=config.video_size)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Sets the context."""
        self.context.normal_(std=0.1, generator=generator)

    def forward(self, noisy: Latents, condition: Condition) -> Tensor:
        """Float32 tokens (batch, token, width) of noisy latents and what is known beside them."""
        kept = torch.where(condition.has_context[:, None, None], self.context, 0.0)
        context = self.context_projection(kept).float()
        given = condition.latents
        audio = self.audio(noisy.audio, given=given.audio, is_given=condition.has_audio)
        video = self.video(noisy.video, given=given.video, is_given=condition.has_video)
        return torch.cat([context, audio, video], dim=1)


def sin_cos_table(size: int, *, width: int) -> Tensor:
    """The fixed embedding of a square grid's positions: float32 (size * size, width).

    In raster order. A quarter each of the channels: sines and cosines of the column, sines and
    cosines of the row, at the frequencies 10000^(-4 i / width).
    """
    quarter = width // 4
    indices = torch.arange(quarter, dtype=torch.float64)
    frequencies = 10_000 ** (-indices / quarter)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = repeat(axis, "column c -> (row column) c", row=size)
    rows = repeat(axis, "row c -> (row column) c", column=size)
    return torch.cat([columns, rows], dim=1).float()


def _rasterise(latents: Tensor) -> Tensor:
    return rearrange(latents.float(), "b c row column -> b (row column) c")
