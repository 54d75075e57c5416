"""How well held-out windows are denoised: in each task, with a foreign condition, and linearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.diffusion.guidance import Denoise
from training.diffusion.keyed_draws import Key, keyed_noise, keyed_uniforms
from training.diffusion.objective import LinearDenoiser, noise_loss
from training.diffusion.pair import Latents
from training.diffusion.schedule import NoiseSchedule
from training.diffusion.tasks import Condition, condition_for
from training.dit.batches import WindowBatches
from training.dit.settings import ValidationSettings

Case = Literal["svg", "a2v", "v2a", "a2v shuffled", "v2a shuffled", "linear"]
"""The three tasks; the two conditional ones given the latent of another source's window; and the
best linear denoiser per channel, which a model must beat to have learned anything of structure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """Mean squared error of predicted noise on held-out windows, over all timesteps alike."""

    video: float
    audio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """All cases on the same windows, timesteps and noise, so that their differences count.

    The shuffled ones are missing where only one source is held out.
    """

    losses: Mapping[Case, HeldOutLoss]
    num_windows: int


class Validator:
    """Validates denoisers on some held-out windows.

    Args:
        batches: Held-out windows.
        schedule: Of the noise.
        settings: How many, and how often each.
        device: Where denoisers run.
    """

    def __init__(
        self,
        batches: WindowBatches,
        schedule: NoiseSchedule,
        settings: ValidationSettings,
        *,
        device: torch.device | str,
    ) -> None:
        self._batches, self._schedule, self._settings = batches, schedule, settings
        self._device = device
        num_all = batches.windows.num_windows
        count = min(settings.num_windows, num_all)
        self.windows = np.arange(count, dtype=np.int64) * num_all // count
        self._others = foreign_windows(batches, self.windows)
        whitening = batches.whitening
        self._linear = LinearDenoiser(
            schedule=schedule,
            video_variance=torch.tensor(whitening.video.whitened_variance, dtype=torch.float64),
            audio_variance=torch.tensor(whitening.audio.whitened_variance, dtype=torch.float64),
        )

    @torch.no_grad()
    def validate(self, denoise: Denoise) -> Validation:
        """The losses of a denoiser."""
        sums: dict[Case, NDArray[np.float64]] = {}
        for part, windows, others in self._parts():
            keys: list[Key] = [(part, int(window)) for window in windows]
            clean = self._batches.of(windows, keys=keys).to(self._device)
            foreign = self._batches.of(others, keys=keys).to(self._device) if len(others) else None
            seed = self._batches.seed
            noise = keyed_noise(clean.shapes, seed=seed, stream="validation", keys=keys)
            noise = noise.to(self._device)
            timesteps = self._timesteps(part, keys).to(self._device)
            noisy = self._schedule.noised(clean, noise, timesteps)
            for case, predict in self._cases(denoise, clean, foreign):
                loss = noise_loss(predict(noisy, timesteps), noise)
                both = [loss.video.double().sum().item(), loss.audio.double().sum().item()]
                sums[case] = sums.get(case, np.zeros(2)) + both
        count = self._settings.draws * len(self.windows)
        return Validation(
            losses={
                case: HeldOutLoss(video=float(video / count), audio=float(audio / count))
                for case, (video, audio) in sums.items()
            },
            num_windows=len(self.windows),
        )

    def _parts(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        size = self._settings.batch_size
        for part in range(self._settings.draws):
            for first in range(0, len(self.windows), size):
                chosen = slice(first, first + size)
                yield part, self.windows[chosen], self._others[chosen]

    def _timesteps(self, part: int, keys: list[Key]) -> Tensor:
        """One in this part of the schedule for each window."""
        uniforms = keyed_uniforms(1, seed=self._batches.seed, stream="validation", keys=keys)[:, 0]
        places = (part + uniforms) / self._settings.draws
        return (places * self._schedule.num_timesteps).long()

    def _cases(
        self, denoise: Denoise, clean: Latents, foreign: Latents | None
    ) -> Iterator[tuple[Case, Callable[[Latents, Tensor], Latents]]]:
        conditions: dict[Case, Condition] = {
            "svg": condition_for("svg", clean),
            "a2v": condition_for("a2v", clean),
            "v2a": condition_for("v2a", clean),
        }
        if foreign is not None:
            conditions["a2v shuffled"] = condition_for("a2v", foreign)
            conditions["v2a shuffled"] = condition_for("v2a", foreign)
        for case, condition in conditions.items():
            yield case, lambda noisy, steps, c=condition: denoise(noisy, steps, c)  # type: ignore[misc]
        yield "linear", self._linear


def foreign_windows(batches: WindowBatches, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each window one of another source; none at all where there is only one source.

    They are half way round the windows, or the next after that, so that none is taken often.
    """
    clips = [batches.windows.place(int(window))[0] for window in windows]
    if len({_source(clip) for clip in clips}) < 2:
        return windows[:0]
    others = windows.copy()
    for number, clip in enumerate(clips):
        for step in range(len(windows) // 2, len(windows) + len(windows) // 2):
            place = (number + step) % len(windows)
            if _source(clips[place]) != _source(clip):
                others[number] = windows[place]
                break
    return others


def _source(clip: str) -> str:
    """What the key of a clip says of its source."""
    return clip.split("-")[0]
