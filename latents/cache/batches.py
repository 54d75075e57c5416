"""Which windows a rank sees at a step: the same global batches however many ranks there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latents.errors import ConfigError


class WindowOrder(Protocol):
    """The order in which training sees windows: a function of the position alone."""

    @property
    def num_windows(self) -> int:
        """How many there are; they are numbered from 0."""

    @property
    def epoch_windows(self) -> int:
        """Positions of an epoch."""

    def at(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What each window's draws are keyed by, and the windows of some positions.

        Args:
            first: Position, 0 being the start.
            count: How many.

        Returns:
            Epochs and windows. A pair of both comes once.
        """

    def identity(self) -> dict[str, int]:
        """What tells this order from others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalBatches:
    """The batches of an order of windows, or one rank's part of each.

    The global batch of step s is the order's positions [s * batch_size, (s + 1) * batch_size), so
    that what an epoch cannot fill goes on with the next. Each rank takes a part of it, side by
    side in order of rank.
    """

    order: WindowOrder
    batch_size: int
    """Windows of a global batch, of all ranks together."""
    rank: int = 0
    world_size: int = 1
    """Number of ranks; divides the batch size."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; it must be in [0, {self.world_size})")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, of which {self.world_size} ranks cannot have "
                "equal parts; make it a multiple of the world size"
            )

    @property
    def rank_size(self) -> int:
        """Windows of a batch that this rank takes."""
        return self.batch_size // self.world_size

    def at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and windows of this rank at a step, counted from 0."""
        first = step * self.batch_size + self.rank * self.rank_size
        return self.order.at(first, self.rank_size)

    def state_at(self, step: int) -> dict[str, int]:
        """What to keep so as to go on from a step, on any number of ranks."""
        return {"step": step, **self._identity()}

    def step_in(self, state: Mapping[str, int]) -> int:
        """The step to go on from.

        Args:
            state: Of `state_at`.

        Raises:
            ConfigError: It is of other batches than these; says how they differ.
        """
        wanted = self._identity()
        are_counts = all(isinstance(value, int) for value in state.values())
        if state.keys() != {"step", *wanted} or not are_counts or state["step"] < 0:
            raise ConfigError(
                f"this is no position in training: {dict(state)}; wanted counts of step, "
                f"{', '.join(wanted)}"
            )
        differences = [
            f"{name} was {state[name]} and is {here}"
            for name, here in wanted.items()
            if state[name] != here
        ]
        if differences:
            raise ConfigError(
                f"these are other batches than before: {', '.join(differences)}. Go on with what "
                "it was, or begin anew"
            )
        return state["step"]

    def _identity(self) -> dict[str, int]:
        return {**self.order.identity(), "batch_size": self.batch_size}
