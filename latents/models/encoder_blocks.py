"""Layers of the modal encoders. Each takes and gives (batch, channel, time, row, column).

Every residual branch ends in a layer that starts at zero, so that a fresh encoder is only its skip
connections; `draw_weights` can draw those layers too.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

Start = Literal["live", "zero"]
"""What the layers that end a branch start as: random, or zero as for training."""


class ZeroStart(nn.Module):
    """Makes the layer it is mixed into start with zero weights and bias."""

    def reset_parameters(self) -> None:
        """Sets what the layer would otherwise draw."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ZeroLinear(ZeroStart, nn.Linear):
    """A linear layer that starts at zero."""


class ZeroConv2d(ZeroStart, nn.Conv2d):
    """A 2-D convolution that starts at zero."""


class ZeroConv3d(ZeroStart, nn.Conv3d):
    """A 3-D convolution that starts at zero."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation, computed in float32; with fewer channels than groups, one each."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__(min(groups, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        normal = functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps)
        return normal.to(x.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions on each frame by itself, beside a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            GroupNorm(in_channels, groups=norm_groups),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            GroupNorm(out_channels, groups=norm_groups),
            nn.SiLU(),
            ZeroConv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Channels become ``out_channels``."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        mixed: Tensor = self.skip(frames) + self.branch(frames)
        return rearrange(mixed, "(b t) c h w -> b c t h w", t=x.shape[2])


class Attention(nn.Module):
    """Multi-head self-attention over tokens, (batch, channel, token), added to them."""

    def __init__(self, channels: int, *, head_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = GroupNorm(channels, groups=norm_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = ZeroLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        qkv = self.qkv(rearrange(self.norm(x), "b c n -> b n c"))
        q, k, v = rearrange(
            qkv, "b n (head part c) -> part b head n c", part=3, c=self.head_channels
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        change: Tensor = self.out(rearrange(mixed, "b head n c -> b n (head c)"))
        return x + rearrange(change, "b n c -> b c n")


class SpatialAttention(nn.Module):
    """Attention among the positions of each frame."""

    def __init__(self, channels: int, *, head_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.among = Attention(channels, head_channels=head_channels, norm_groups=norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        tokens: Tensor = self.among(rearrange(x, "b c t h w -> (b t) c (h w)"))
        return rearrange(tokens, "(b t) c (h w) -> b c t h w", t=x.shape[2], w=x.shape[4])


class TemporalAttention(nn.Module):
    """Attention among the frames at each position."""

    def __init__(self, channels: int, *, head_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.among = Attention(channels, head_channels=head_channels, norm_groups=norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        _, _, _, height, width = x.shape
        tokens: Tensor = self.among(rearrange(x, "b c t h w -> (b h w) c t"))
        return rearrange(tokens, "(b h w) c t -> b c t h w", h=height, w=width)


def downsample(channels: int) -> nn.Conv3d:
    """Half as many rows and columns, as many frames."""
    return nn.Conv3d(channels, channels, 3, stride=(1, 2, 2), padding=1)


class MomentHead(nn.Module):
    """One moment of the posterior, (batch, out_channels, row, column), read at the first frame."""

    def __init__(
        self, in_channels: int, out_channels: int, *, norm_groups: int, last: type[nn.Conv3d]
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            GroupNorm(out_channels, groups=norm_groups),
            nn.SiLU(),
            last(out_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The norm sees every frame; only the first is returned."""
        moment: Tensor = self.layers(x)[:, :, 0]
        return moment


@torch.no_grad()
def draw_weights(model: nn.Module, *, key: str, start: Start) -> None:
    """Give a model weights that are a function of a key alone.

    Each tensor has a generator of its own. Layers are drawn as torch does by default, uniform
    within 1 / sqrt(fan in); norms start as the identity; parameters outside a layer are standard
    normal.

    Args:
        model: Its weights are replaced.
        key: Any text, such as seed and part.
        start: ``zero`` leaves the layers that end a branch at zero.
    """
    for name, module in model.named_modules():
        if isinstance(module, GroupNorm) or (isinstance(module, ZeroStart) and start == "zero"):
            module.reset_parameters()
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            generator = _generator(f"{key}/{name}.{leaf}")
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.normal_(generator=generator)


def _generator(key: str) -> torch.Generator:
    # Hashed: torch's CPU generator takes 32 bits of a seed and drops the rest.
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
