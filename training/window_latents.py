"""Training windows of the ``kl`` level in memory, as the modal encoders read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latents.cache.order import TrainingOrder
from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.refs import read_recipe
from latents.channel_sums import ClipChannelSums
from latents.errors import CacheError
from latents.posterior import posterior_mode
from latents.whitening import Whitening, mode_sums, whitening_of
from training.picture_stream import generator_of


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowBatch:
    """Windows side by side: KL means, scaled as the encoders read them, float32."""

    video: Tensor
    """(window, frame, channel, row, column)."""
    audio: Tensor
    """(window, channel, row, column), of the same windows' mel images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariationSettings:
    """The table ``[variation]``: what is changed about a window's pictures, never its sound.

    Both give KL latents that a camera could have seen, the first exactly, the second nearly: a
    KL-VAE's picture of a mirrored frame is almost its picture mirrored.
    """

    reversed_share: float = 0.5
    """Share of the windows whose frames run backwards."""
    mirrored_share: float = 0.5
    """Share of the windows that are mirrored left to right."""

    def __post_init__(self) -> None:
        for name in ("reversed_share", "mirrored_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")


class WindowLatents:
    """All windows of some clips of the ``kl`` level: every frame once, every mel image once.

    Windows are numbered clip after clip, in the order given. Only means are kept, as stored: about
    10 KB a frame of 256 x 256 pixels.

    Args:
        level: ``kl``, opened.
        clips: Of this level, at least one.
        on_clip: Told after each clip how many are read and how many there are.

    Raises:
        CacheError: There are no clips, they differ in shape, or the recipe has no scaling factor.
        DamagedError: A tensor is not what was written.

    Attributes:
        frames: Of a window.
        video_whitening: Mean and spread of the scaled means of all frames.
        audio_whitening: The same of all mel images.
    """

    def __init__(
        self,
        level: CachedLevel,
        clips: Sequence[CachedClip],
        *,
        on_clip: Callable[[int, int], None] | None = None,
    ) -> None:
        if not clips:
            raise CacheError(f"{level.layout.url}: the kl level holds no clips for this split")
        self._factor, self._shift = _scale_of(level)
        sums: dict[str, list[ClipChannelSums]] = {"kl.video": [], "kl.audio": []}
        self._videos: list[Tensor] = []
        self._audios: list[Tensor] = []
        self._places: list[tuple[int, int, int]] = []
        self.frames = _window_frames(clips[0])
        for number, clip in enumerate(clips):
            self._check(clip, clips[0])
            for field, means in (("kl.video", self._videos), ("kl.audio", self._audios)):
                moments = torch.from_numpy(level.read(clip, field))
                sums[field].append(mode_sums(clip.clip, moments))
                means.append(posterior_mode(moments).half())
            row = clip.rows["kl.audio"]
            first, stride = row.window_first_frame or 0, row.window_stride or 1
            self._places += [(number, k, first + stride * k) for k in range(clip.num_windows)]
            if on_clip is not None:
                on_clip(number + 1, len(clips))
        self.video_whitening = self._whitening(sums["kl.video"])
        self.audio_whitening = self._whitening(sums["kl.audio"])

    @property
    def num_windows(self) -> int:
        """Of all clips together."""
        return len(self._places)

    def take(self, windows: Sequence[int] | NDArray[np.int64]) -> WindowBatch:
        """Windows by number, on the grid of the cache."""
        places = [self._places[window] for window in windows]
        video = [self._videos[clip][first : first + self.frames] for clip, _, first in places]
        audio = [self._audios[clip][number] for clip, number, _ in places]
        return WindowBatch(video=self._scaled(video), audio=self._scaled(audio))

    def take_anywhere(
        self, windows: Sequence[int] | NDArray[np.int64], rng: torch.Generator
    ) -> WindowBatch:
        """As `take`, but the pictures begin at any frame of the window's clip."""
        batch = self.take(windows)
        clips = [self._places[window][0] for window in windows]
        starts = [
            int(torch.randint(len(self._videos[clip]) - self.frames + 1, (1,), generator=rng))
            for clip in clips
        ]
        video = [
            self._videos[clip][start : start + self.frames]
            for clip, start in zip(clips, starts, strict=True)
        ]
        return WindowBatch(video=self._scaled(video), audio=batch.audio)

    def _scaled(self, means: list[Tensor]) -> Tensor:
        return (torch.stack(means).float() - self._shift) * self._factor

    def _whitening(self, sums: list[ClipChannelSums]) -> Whitening:
        """Of scaled means."""
        stored = whitening_of(sums, spread="modes")
        return Whitening(
            mean=tuple((mean - self._shift) * self._factor for mean in stored.mean),
            std=tuple(std * self._factor for std in stored.std),
            spread="modes",
        )

    def _check(self, clip: CachedClip, first: CachedClip) -> None:
        for field, row in clip.rows.items():
            wanted = first.rows[field].shape[1:]
            if row.shape[1:] != wanted or _window_frames(clip) != self.frames:
                raise CacheError(
                    f"{field} of clip {clip.clip} is {row.shape[1:]} in windows of "
                    f"{_window_frames(clip)} frames, but that of clip {first.clip} is {wanted} in "
                    f"windows of {self.frames}"
                )


class WindowBatches:
    """Batches of windows, each a function of (seed, step) and the clips' keys.

    Every window comes once in an epoch, with its sound; its pictures begin at any frame of its
    clip, and are varied.
    """

    def __init__(
        self,
        windows: WindowLatents,
        variation: VariationSettings,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.windows = windows
        self._variation = variation
        self._batch_size = batch_size
        self._seed = seed
        self._order = TrainingOrder(num_windows=windows.num_windows, seed=seed)

    def at(self, step: int) -> WindowBatch:
        """The batch of a step, from 0."""
        _, numbers = self._order.at(step * self._batch_size, self._batch_size)
        rng = generator_of(self._seed, "windows", step)
        batch = self.windows.take_anywhere(numbers, rng)
        is_reversed, is_mirrored = torch.rand(2, self._batch_size, 1, 1, 1, 1, generator=rng)
        video = torch.where(
            is_reversed < self._variation.reversed_share, batch.video.flip(1), batch.video
        )
        video = torch.where(is_mirrored < self._variation.mirrored_share, video.flip(4), video)
        return WindowBatch(video=video, audio=batch.audio)


def _window_frames(clip: CachedClip) -> int:
    return clip.rows["kl.audio"].window_frames or 0


def _scale_of(level: CachedLevel) -> tuple[float, float]:
    """The KL-VAE's factor and shift: encoders read (mean - shift) * factor."""
    recipe = read_recipe(level.layout, level.recipes["kl.video"])
    kl_vae = recipe.specification.get("kl_vae")
    if not isinstance(kl_vae, dict) or "scaling_factor" not in kl_vae:
        raise CacheError(
            f"{level.layout.url}: the recipe of kl.video names no scaling factor of a KL-VAE"
        )
    return float(str(kl_vae["scaling_factor"])), float(str(kl_vae.get("shift_factor", 0)))
