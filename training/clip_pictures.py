"""Pictures for training a KL-VAE, from a cache's clip level: frames and mel images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latents.cache.reader import CachedClip, CachedLevel
from latents.errors import CacheError, ConfigError
from latents.mel import MelSpec, downmix, mel_spec, resample, window_image


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSettings:
    """Which pictures a KL-VAE is trained on."""

    mel: str = "hifigan22k"
    """Name of the mel image's specification."""
    audio_share: float = 0.25
    """Part of each batch that is mel images; the rest is frames."""

    window_seconds: float = 1.6
    """Sound of one mel image: 16 frames at 10 fps."""

    def __post_init__(self) -> None:
        if self.window_seconds <= 0:
            raise ValueError(f"pictures.window_seconds is {self.window_seconds}; it must be > 0")
        if not 0 <= self.audio_share <= 1:
            raise ValueError(f"pictures.audio_share is {self.audio_share}; it is between 0 and 1")


class ClipPictures:
    """Batches of uint8 pictures (batch, 3, crop, crop), drawn with replacement from all clips.

    A batch is a function of (seed, step) and the clips' keys, so training can resume at any step.

    Raises:
        CacheError: The level has no clips.
    """

    def __init__(
        self,
        level: CachedLevel,
        settings: PictureSettings,
        *,
        batch_size: int,
        crop: int,
        seed: int,
    ) -> None:
        if not level.clips:
            raise CacheError(f"{level.layout.url}: the clip level holds no clips to train on")
        self._level = level
        self._mel: MelSpec = mel_spec(settings.mel)
        self._window_seconds = settings.window_seconds
        self._num_mels = round(batch_size * settings.audio_share)
        self._batch_size = batch_size
        self._crop = crop
        self._seed = seed

    def open(self, step: int) -> Iterator[Tensor]:
        """Batches from a step on, without end."""
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Tensor:
        """The batch of one step."""
        rng = np.random.default_rng([self._seed, step])
        clips = [
            self._level.clips[i] for i in rng.integers(len(self._level), size=self._batch_size)
        ]
        pictures = [self._mel_image(clip, rng) for clip in clips[: self._num_mels]]
        pictures += [self._frame(clip, rng) for clip in clips[self._num_mels :]]
        return torch.stack([self._cut(picture, rng) for picture in pictures])

    def _cut(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = picture.shape[1:]
        if min(height, width) < self._crop:
            raise ConfigError(
                f"optimisation.crop is {self._crop}, but the cache holds pictures of "
                f"{height}x{width}; choose a smaller one"
            )
        top = int(rng.integers(height - self._crop + 1))
        left = int(rng.integers(width - self._crop + 1))
        return picture[:, top : top + self._crop, left : left + self._crop]

    def _frame(self, clip: CachedClip, rng: np.random.Generator) -> Tensor:
        index = int(rng.integers(clip.rows["clip.video"].shape[0]))
        frame: Tensor = torch.from_numpy(self._level.read(clip, "clip.video", index, index + 1)[0])
        return frame

    def _mel_image(self, clip: CachedClip, rng: np.random.Generator) -> Tensor:
        rate = clip.rows["clip.audio"].sample_rate
        assert rate is not None
        waveform = downmix(torch.from_numpy(self._level.read(clip, "clip.audio")))
        length = round(self._window_seconds * rate)
        start = int(rng.integers(max(1, len(waveform) - length + 1)))
        mono = resample(waveform[start : start + length], rate, self._mel.sample_rate)
        missing = max(0, self._mel.min_samples - len(mono))
        return window_image(torch.nn.functional.pad(mono, (0, missing)), self._mel)
