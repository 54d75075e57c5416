"""A model in training: its weights, their moving average, the optimiser and the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latents.errors import ConfigError, ModelError
from training.checkpoint import (
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)
from training.ema import ExponentialMovingAverage
from training.optim import OptimisationSettings, make_optimizer

_STILL_OPEN = frozenset(
    f"optimisation.{name}" for name in ("steps", "decay_steps", "checkpoint_steps", "learning_rate")
)
"""Settings that a resumed run may change."""
_MAX_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """How the weights were moved by one step."""

    grad_norm: float
    """Before it was scaled down."""
    learning_rate: float


class OptimisedModel:
    """Moves a model's weights, and all that moves with them.

    Args:
        model: Trained in place, on the device it is on.
        settings: How.
    """

    def __init__(self, model: nn.Module, settings: OptimisationSettings) -> None:
        self.step = 0
        self.average = ExponentialMovingAverage(model, decay=settings.ema_decay)
        self._model, self._settings = model.train(), settings
        self._names, self._parameters = map(list, zip(*model.named_parameters(), strict=True))
        self._optimizer = make_optimizer(self._parameters, settings)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._model.parameters()).device

    def autocast(self) -> torch.autocast:
        """The precision that the forward pass runs in."""
        is_half = self._settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_half)

    def move(self, loss: Tensor) -> Moved:
        """One step down a loss."""
        rate = self._settings.learning_rate_at(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, self._settings.max_grad_norm or math.inf
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.average.update(self._model)
        self.step += 1
        return Moved(grad_norm=norm.item(), learning_rate=rate)

    def save(self, path: Path, *, run: Mapping[str, Any]) -> None:
        """Writes a checkpoint; it replaces the one there as a whole.

        Args:
            path: The file.
            run: What a resumed run must find unchanged, by the paths of settings, as JSON values.

        Raises:
            ModelError: It cannot be written.
        """
        tensors = {
            **with_prefix("model", self._model.state_dict()),
            **with_prefix("average", self.average.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self._optimizer, self._names)),
        }
        state = {"step": self.step, "settings": dict(run)}
        write_checkpoint(path, Checkpoint(tensors=tensors, state=state))

    def restore(self, path: Path, *, run: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Args:
            path: The file.
            run: As for `save`.

        Raises:
            ModelError: It is missing or damaged, or of another architecture.
            ConfigError: The run began with other settings, or on other latents.
        """
        checkpoint = read_checkpoint(path)
        _require_same(path, checkpoint.state.get("settings"), run)
        try:
            self._model.load_state_dict(checkpoint.part("model"))
            self.average.load_state_dict(checkpoint.part("average"))
            load_optimizer(self._optimizer, self._names, checkpoint.part("optimizer"))
            self.step = int(checkpoint.state["step"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: no usable checkpoint of this model: {error}") from error


def by_path(table: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their paths, such as ``optimisation.steps``."""
    if not isinstance(table, dict):
        return {prefix.removesuffix("."): table}
    return {
        path: value
        for name, below in table.items()
        for path, value in by_path(below, f"{prefix}{name}.").items()
    }


def _require_same(path: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    found = found if isinstance(found, dict) else {}
    names: Collection[str] = (found.keys() | wanted.keys()) - _STILL_OPEN
    differing = [
        f"{name} {found.get(name)!r} (now {wanted.get(name)!r})"
        for name in sorted(names)
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{path}: the run began with {', '.join(differing[:_MAX_NAMED])}. Resume with what it "
            "began with, or start afresh with another --out"
        )
