"""Batches of whitened latents from stored windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latents.cache.windows import NumberedWindows
from latents.posterior import Draw, posterior_draw, posterior_mode
from latents.whitening import Whitening
from training.diffusion.keyed_draws import Key, keyed_noise
from training.diffusion.pair import Latents, LatentShapes

VIDEO, AUDIO = "perceptual.video", "perceptual.audio"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairWhitening:
    """The whitening of both latents of a window."""

    video: Whitening
    audio: Whitening

    def whiten(self, latents: Latents) -> Latents:
        """Mean 0 and variance 1 per channel."""
        return Latents(
            video=self.video.whiten(latents.video), audio=self.audio.whiten(latents.audio)
        )

    def unwhiten(self, whitened: Latents) -> Latents:
        """Inverse of `whiten`."""
        return Latents(
            video=self.video.unwhiten(whitened.video), audio=self.audio.unwhiten(whitened.audio)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowBatches:
    """Windows as whitened latents, float32, where the windows are.

    What is drawn from a posterior is keyed by (seed, key), the same at any batch size.
    """

    windows: NumberedWindows
    whitening: PairWhitening
    draw: Draw
    seed: int

    @property
    def shapes(self) -> LatentShapes:
        """Of one window's latents."""
        return self.of(np.zeros(1, np.int64), keys=[(0, 0)]).shapes

    def of(self, windows: NDArray[np.int64], *, keys: Sequence[Key]) -> Latents:
        """The latents of windows, by number.

        Args:
            windows: Numbers.
            keys: What each one's draw is keyed by.
        """
        return self.of_arrays(self.windows.take(windows), keys=keys)

    def of_arrays(self, arrays: Mapping[str, Any], *, keys: Sequence[Key]) -> Latents:
        """The latents of windows that have been read.

        Args:
            arrays: Moments by field (window, ...), arrays or tensors.
            keys: What each one's draw is keyed by.
        """
        moments = Latents(
            video=torch.as_tensor(arrays[VIDEO]), audio=torch.as_tensor(arrays[AUDIO])
        )
        latents = moments.map(posterior_mode)
        if self.draw == "sample":
            noise = keyed_noise(latents.shapes, seed=self.seed, stream="posterior", keys=keys)
            latents = moments.map(posterior_draw, noise.to(moments.video.device))
        return self.whitening.whiten(latents)
