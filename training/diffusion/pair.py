"""The two latents of a window, which are noised, denoised and sampled together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentShapes:
    """Channels, rows and columns of one window's latents; by default those of the paper."""

    video: tuple[int, int, int] = (16, 16, 16)
    audio: tuple[int, int, int] = (16, 8, 8)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Latents:
    """A batch of windows: one tensor (batch, channel, row, column) for each modality."""

    video: Tensor
    audio: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.video.shape), tuple(self.audio.shape)
        if self.video.ndim != 4 or self.audio.ndim != 4 or shapes[0][0] != shapes[1][0]:
            raise ValueError(
                "video and audio must be (batch, channel, row, column) with one batch, got "
                f"{shapes[0]} and {shapes[1]}"
            )

    def __len__(self) -> int:
        return len(self.video)

    @property
    def shapes(self) -> LatentShapes:
        """Shapes of one window."""
        (_, *video), (_, *audio) = self.video.shape, self.audio.shape
        return LatentShapes(
            video=(video[0], video[1], video[2]), audio=(audio[0], audio[1], audio[2])
        )

    def map(self, function: Callable[..., Tensor], *others: Latents) -> Latents:
        """The function of each modality's tensor, and of the same modality of the others."""
        return Latents(
            video=function(self.video, *(other.video for other in others)),
            audio=function(self.audio, *(other.audio for other in others)),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Latents:
        """On a device, and as another type where one is given."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))
