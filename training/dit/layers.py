"""Layers of the diffusion transformer (DiT with adaLN-zero; Peebles and Xie, 2023).

Tokens are (batch, token, channel); a timestep's embedding is (batch, channel). Under autocast,
what enters and leaves, the residual stream, norms and modulation stay in float32; attention, MLPs
and the projection of the context do not. Parameters are float32.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

Start = Literal["zero", "glorot", "normal", "fan_in"]
"""How a linear layer starts.

``zero``: all zeros. ``glorot``: Glorot's uniform weights, bias zero. ``normal``: normal weights of
standard deviation 0.02, bias zero. ``fan_in``: weights and bias uniform within 1 / sqrt(fan in),
torch's own start of a convolution.
"""

TIMESTEP_CHANNELS = 256
"""Cosines, then sines, of a timestep."""
LONGEST_PERIOD = 10_000
"""Of the timestep's sinusoids, over 2 pi."""
NORM_EPS = 1e-6


class Linear(nn.Linear):
    """A linear layer that has no values until `draw` gives them."""

    def __init__(self, in_features: int, out_features: int, *, start: Start) -> None:
        super().__init__(in_features, out_features)
        self.start = start

    def reset_parameters(self) -> None:
        """Nothing: drawing twice would cost time and move torch's global generator."""

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Sets weight and bias as `start` says; None is torch's global generator."""
        self.bias.zero_()
        if self.start == "zero":
            self.weight.zero_()
        elif self.start == "glorot":
            nn.init.xavier_uniform_(self.weight, generator=generator)
        elif self.start == "normal":
            self.weight.normal_(std=0.02, generator=generator)
        else:
            bound = 1 / math.sqrt(self.in_features)
            self.weight.uniform_(-bound, bound, generator=generator)
            self.bias.uniform_(-bound, bound, generator=generator)


class TimestepEmbedding(nn.Module):
    """Timesteps (batch,) to float32 (batch, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Linear(TIMESTEP_CHANNELS, width, start="normal")
        self.second = Linear(width, width, start="normal")

    def forward(self, timesteps: Tensor) -> Tensor:
        """One embedding per sample; timesteps are integers or fractions, in [0, 1000)."""
        with without_autocast(timesteps):
            hidden = functional.silu(self.first(timestep_sinusoids(timesteps)))
            embedding: Tensor = self.second(hidden)
        return embedding


class Modulation(nn.Module):
    """A timestep's embedding to the ``num_parts`` shifts, scales and gates of one place."""

    def __init__(self, width: int, *, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.linear = Linear(width, num_parts * width, start="zero")

    def forward(self, embedding: Tensor) -> Tensor:
        """float32 (part, batch, 1, width)."""
        with without_autocast(embedding):
            parts: Tensor = self.linear(functional.silu(embedding))
        return rearrange(parts, "b (part d) -> part b 1 d", part=self.num_parts)


class Attention(nn.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, start="glorot")
        self.out = Linear(width, width, start="glorot")

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape."""
        q, k, v = rearrange(
            self.qkv(tokens), "b n (part head c) -> part b head n c", part=3, head=self.num_heads
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "b head n c -> b n (head c)"))
        return out


class MLP(nn.Module):
    """Two linear layers on each token by itself, with a tanh-approximated GELU between."""

    def __init__(self, width: int, *, ratio: int) -> None:
        super().__init__()
        self.up = Linear(width, ratio * width, start="glorot")
        self.down = Linear(ratio * width, width, start="glorot")

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape."""
        out: Tensor = self.down(functional.gelu(self.up(tokens), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and MLP, each modulated by the timestep and behind a gate that starts at zero."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, num_parts=6)
        self.attention = Attention(width, num_heads=num_heads)
        self.mlp = MLP(width, ratio=mlp_ratio)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """The same shape, float32; a fresh block gives the tokens back unchanged."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding)
        tokens = tokens + gate * self.attention(modulated_norm(tokens, shift=shift, scale=scale))
        normal = modulated_norm(tokens, shift=mlp_shift, scale=mlp_scale)
        out: Tensor = tokens + mlp_gate * self.mlp(normal)
        return out


class FinalLayer(nn.Module):
    """Tokens to the latent's channels; zero when fresh."""

    def __init__(self, width: int, *, out_channels: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, num_parts=2)
        self.out = Linear(width, out_channels, start="zero")

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """float32 (batch, token, out_channels)."""
        shift, scale = self.modulation(embedding)
        with without_autocast(tokens):
            out: Tensor = self.out(modulated_norm(tokens, shift=shift, scale=scale))
        return out


def timestep_sinusoids(timesteps: Tensor) -> Tensor:
    """Cosines, then sines, of timesteps (batch,) at 128 frequencies from 1 down: float32."""
    num_frequencies = TIMESTEP_CHANNELS // 2
    indices = torch.arange(num_frequencies, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) / num_frequencies * indices)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulated_norm(tokens: Tensor, *, shift: Tensor, scale: Tensor) -> Tensor:
    """A layer norm without weights of its own, scaled by 1 + ``scale`` and shifted: float32."""
    normal = functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=NORM_EPS)
    return normal * (1 + scale) + shift


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Leaves autocast on the tensor's device; the meta device, which has none, is let be."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
