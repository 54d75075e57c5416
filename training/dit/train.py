"""Training the diffusion transformer on windows of caches and packs.

A step is a function of the weights, the optimiser and the step's number: which windows, their
timesteps, noise and tasks are keyed by (seed, epoch, window). A run that was stopped and resumed on
the CPU ends with the same bytes as one that never was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latents.cache.batches import GlobalBatches, WindowOrder
from latents.cache.loader import Batch, WindowLoader
from training.diffusion.keyed_draws import Key, keyed_noise, keyed_timesteps
from training.diffusion.objective import NoiseLoss, noise_loss
from training.diffusion.schedule import NoiseSchedule, linear_schedule
from training.diffusion.tasks import draw_tasks
from training.dit.batches import WindowBatches
from training.dit.model import DiT
from training.dit.settings import DiTRunSettings
from training.ema import ExponentialMovingAverage
from training.optimised_model import Moved, OptimisedModel, by_path


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """What happened since the last report."""

    step: int
    """Steps done."""
    epoch: float
    """Windows seen, in epochs of the order."""
    video_loss: float
    audio_loss: float
    grad_norm: float
    learning_rate: float


class DiTTrainer:
    """A DiT in training.

    Args:
        model: Trained in place, on the device it is on.
        settings: How.
        pinned: What a resumed run must find unchanged: commit, recipes and whitening, as JSON.
    """

    def __init__(self, model: DiT, settings: DiTRunSettings, *, pinned: dict[str, Any]) -> None:
        self.model = model
        self.settings = settings
        self._weights = OptimisedModel(model, settings.optimisation)
        self._schedule = schedule_of(settings).to(self._weights.device)
        self._pinned = pinned

    @property
    def step(self) -> int:
        """Steps done."""
        return self._weights.step

    @property
    def average(self) -> ExponentialMovingAverage:
        """Of the weights; what is kept in the end."""
        return self._weights.average

    def train(
        self,
        batches: WindowBatches,
        order: WindowOrder,
        *,
        on_step: Callable[[TrainProgress], None],
    ) -> None:
        """Trains from the present step to the last one.

        Args:
            batches: The windows to train on.
            order: Of these windows, keyed by the seed of the settings.
            on_step: Called after each step.
        """
        optimisation = self.settings.optimisation
        wanted = GlobalBatches(order=order, batch_size=optimisation.batch_size)
        with WindowLoader(
            batches.windows, wanted, first_step=self.step, stop_step=optimisation.steps
        ) as loader:
            for batch in loader:
                loss, moved = self._step(batches, batch)
                on_step(
                    TrainProgress(
                        step=self.step,
                        epoch=self.step * optimisation.batch_size / order.epoch_windows,
                        video_loss=loss.video.mean().item(),
                        audio_loss=loss.audio.mean().item(),
                        grad_norm=moved.grad_norm,
                        learning_rate=moved.learning_rate,
                    )
                )

    def _step(self, batches: WindowBatches, batch: Batch) -> tuple[NoiseLoss, Moved]:
        keys: list[Key] = list(zip(batch.epochs.tolist(), batch.windows.tolist(), strict=True))
        seed, device = self.settings.optimisation.seed, self._weights.device
        clean = batches.of_arrays(batch.arrays, keys=keys)
        noise = keyed_noise(clean.shapes, seed=seed, stream="noise", keys=keys).to(device)
        clean = clean.to(device)
        timesteps = keyed_timesteps(self._schedule.num_timesteps, seed=seed, keys=keys).to(device)
        condition = draw_tasks(self.settings.tasks, seed=seed, keys=keys).condition(clean)
        noisy = self._schedule.noised(clean, noise, timesteps)
        with self._weights.autocast():
            predicted = self.model(noisy, timesteps, condition)
        loss = noise_loss(predicted, noise, weighting=self.settings.diffusion.loss)
        return loss, self._weights.move(loss.total)

    def save(self, path: Path) -> None:
        """Writes a checkpoint; see `OptimisedModel.save`."""
        self._weights.save(path, run=self._run())

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint; see `OptimisedModel.restore`."""
        self._weights.restore(path, run=self._run())

    def _run(self) -> dict[str, Any]:
        """All that the weights depend on; how they are validated is not part of it."""
        tables = asdict(self.settings)
        del tables["validation"]
        return by_path(tables) | by_path(self._pinned, "cache.")


def schedule_of(settings: DiTRunSettings) -> NoiseSchedule:
    """The noise schedule that settings describe."""
    diffusion = settings.diffusion
    return linear_schedule(
        num_timesteps=diffusion.num_timesteps,
        first_beta=diffusion.first_beta,
        last_beta=diffusion.last_beta,
    )
