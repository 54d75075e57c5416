"""Training the diffusion transformer on windows in memory.

A step is a function of the weights, the optimiser and the step's number: which windows, their
timesteps, noise and tasks are keyed by (seed, epoch, window). A run that was stopped and resumed on
the CPU ends with the same bytes as one that never was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latents.cache.order import TrainingOrder
from latents.errors import ConfigError, ModelError
from training.checkpoint import (
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)
from training.diffusion.keyed_draws import Key, keyed_noise, keyed_timesteps
from training.diffusion.objective import NoiseLoss, noise_loss
from training.diffusion.schedule import NoiseSchedule, linear_schedule
from training.diffusion.tasks import draw_tasks
from training.dit.batches import WindowBatches
from training.dit.model import DiT
from training.dit.settings import DiTRunSettings
from training.ema import ExponentialMovingAverage
from training.optim import make_optimizer

_STILL_OPEN = ("steps", "decay_steps", "checkpoint_steps", "learning_rate")
"""Settings of the optimisation that a resumed run may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """What happened since the last report."""

    step: int
    """Steps done."""
    epoch: float
    """Windows seen, in epochs."""
    video_loss: float
    audio_loss: float
    grad_norm: float
    learning_rate: float


class DiTTrainer:
    """A DiT in training: weights, their moving average, the optimiser and the step.

    Args:
        model: Trained in place, on the device it is on.
        settings: How.
        pinned: What a resumed run must find unchanged: commit, recipes and whitening, as JSON.
    """

    def __init__(self, model: DiT, settings: DiTRunSettings, *, pinned: dict[str, Any]) -> None:
        self.model = model.train()
        self.settings = settings
        self.step = 0
        optimisation = settings.optimisation
        self.average = ExponentialMovingAverage(model, decay=optimisation.ema_decay)
        self._names, self._parameters = map(list, zip(*model.named_parameters(), strict=True))
        self._optimizer = make_optimizer(self._parameters, optimisation)
        self._schedule = schedule_of(settings).to(self.device)
        self._pinned = pinned

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def train(
        self,
        batches: WindowBatches,
        *,
        on_step: Callable[[TrainProgress], None],
        until: int | None = None,
    ) -> None:
        """Trains from the present step to the last one, or to an earlier one.

        Args:
            batches: The windows to train on.
            on_step: Called after each step.
            until: The step to stop at.
        """
        optimisation = self.settings.optimisation
        order = TrainingOrder(num_windows=batches.windows.num_windows, seed=optimisation.seed)
        last = optimisation.steps if until is None else min(until, optimisation.steps)
        while self.step < last:
            first = self.step * optimisation.batch_size
            epochs, windows = order.at(first, optimisation.batch_size)
            keys: list[Key] = list(zip(epochs.tolist(), windows.tolist(), strict=True))
            rate = optimisation.learning_rate_at(self.step)
            loss, grad_norm = self._step(batches, windows, keys, rate)
            self.step += 1
            on_step(
                TrainProgress(
                    step=self.step,
                    epoch=self.step * optimisation.batch_size / batches.windows.num_windows,
                    video_loss=loss.video.mean().item(),
                    audio_loss=loss.audio.mean().item(),
                    grad_norm=grad_norm,
                    learning_rate=rate,
                )
            )

    def _step(
        self, batches: WindowBatches, windows: Any, keys: list[Key], rate: float
    ) -> tuple[NoiseLoss, float]:
        optimisation, seed = self.settings.optimisation, self.settings.optimisation.seed
        clean = batches.of(windows, keys=keys)
        noise = keyed_noise(clean.shapes, seed=seed, stream="noise", keys=keys).to(self.device)
        clean = clean.to(self.device)
        timesteps = keyed_timesteps(self._schedule.num_timesteps, seed=seed, keys=keys)
        timesteps = timesteps.to(self.device)
        condition = draw_tasks(self.settings.tasks, seed=seed, keys=keys).condition(clean)
        noisy = self._schedule.noised(clean, noise, timesteps)
        with self._autocast():
            predicted = self.model(noisy, timesteps, condition)
        loss = noise_loss(predicted, noise, weighting=self.settings.diffusion.loss)
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, optimisation.max_grad_norm or math.inf
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.average.update(self.model)
        return loss, float(norm)

    def _autocast(self) -> torch.autocast:
        is_half = self.settings.optimisation.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_half)

    def save(self, path: Path) -> None:
        """Writes a checkpoint; it replaces the one there as a whole."""
        tensors: dict[str, Tensor] = {
            **with_prefix("model", dict(self.model.named_parameters())),
            **with_prefix("average", self.average.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self._optimizer, self._names)),
        }
        state = {"step": self.step, "settings": asdict(self.settings), "pinned": self._pinned}
        write_checkpoint(path, Checkpoint(tensors=tensors, state=state))

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ModelError: It is missing or damaged, or of another architecture.
            ConfigError: It was trained with other settings, or on other latents.
        """
        checkpoint = read_checkpoint(path)
        self._require_same(path, checkpoint.state)
        try:
            with torch.no_grad():
                weights = checkpoint.part("model")
                for name, parameter in zip(self._names, self._parameters, strict=True):
                    parameter.copy_(weights[name])
            self.average.load_state_dict(checkpoint.part("average"))
            load_optimizer(self._optimizer, self._names, checkpoint.part("optimizer"))
            self.step = int(checkpoint.state["step"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: no usable checkpoint of this DiT: {error}") from error

    def _require_same(self, path: Path, state: Any) -> None:
        found, wanted = _flat(state.get("settings")), _flat(asdict(self.settings))
        found |= _flat(state.get("pinned"), "cache.")
        wanted |= _flat(self._pinned, "cache.")
        still_open = {f"optimisation.{name}" for name in _STILL_OPEN}
        differing = [
            f"{name} {found.get(name)!r} (now {wanted.get(name)!r})"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
            and name not in still_open
            and not name.startswith("validation.")
        ]
        if differing:
            raise ConfigError(
                f"{path}: the run began with {', '.join(differing[:8])}. Resume with what it began "
                "with, or start afresh with another --out"
            )


def schedule_of(settings: DiTRunSettings) -> NoiseSchedule:
    """The noise schedule that settings describe."""
    diffusion = settings.diffusion
    return linear_schedule(
        num_timesteps=diffusion.num_timesteps,
        first_beta=diffusion.first_beta,
        last_beta=diffusion.last_beta,
    )


def _flat(table: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their paths."""
    if not isinstance(table, dict):
        return {prefix.removesuffix("."): table}
    return {
        path: value
        for name, below in table.items()
        for path, value in _flat(below, f"{prefix}{name}.").items()
    }
