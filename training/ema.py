"""An exponential moving average of a module's parameters, for sampling and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_COUNT = "num_updates"
_AVERAGE = "average."


class ExponentialMovingAverage:
    """The average of every parameter, float32, on the parameter's device.

    Update n, from 0, sets average = d · average + (1 - d) · parameter, where d is the decay, and
    with warm-up min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.

    Args:
        module: Its parameters, on their device, are where the average starts. Buffers are not
            averaged.
        decay: Between 0, which is no averaging, and 1.
        warm_up: Whether the decay starts at 0.1 and grows.
    """

    def __init__(self, module: nn.Module, *, decay: float = 0.9999, warm_up: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.num_updates = 0
        self._decay, self._warm_up = decay, warm_up
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in module.named_parameters()
        }

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        if not self._warm_up:
            return self._decay
        return min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes the module's parameters into the average; call it after each optimiser step."""
        parameters = [parameter.float() for parameter in self._parameters(module).values()]
        torch._foreach_lerp_(list(self._averages.values()), parameters, 1 - self.next_decay)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Gives a module the averages as its parameters, in the parameters' own type."""
        for name, parameter in self._parameters(module).items():
            parameter.copy_(self._averages[name])

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """The module has the averages within, and its own parameters again afterwards."""
        own = {name: p.detach().clone() for name, p in self._parameters(module).items()}
        try:
            self.copy_to(module)
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters(module).items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything an exact resume needs beside the settings, as tensors of its own."""
        averages = {f"{_AVERAGE}{name}": t.clone() for name, t in self._averages.items()}
        return {_COUNT: torch.tensor(self.num_updates), **averages}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: It is of a module with other parameters.
        """
        wanted = {f"{_AVERAGE}{name}": t.shape for name, t in self._averages.items()}
        found = {name: t.shape for name, t in state.items() if name != _COUNT}
        if found != wanted or _COUNT not in state:
            differing = sorted(name for name, _ in set(found.items()) ^ set(wanted.items()))
            raise ValueError(
                f"this average is of another module; {len(differing)} entries are missing or "
                f"differ, such as {differing[:3] or [_COUNT]}"
            )
        self.num_updates = int(state[_COUNT])
        for name, average in self._averages.items():
            average.copy_(state[f"{_AVERAGE}{name}"])

    def _parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(module.named_parameters())
        if list(parameters) != list(self._averages):
            raise ValueError("the module has other parameters than the one averaged")
        return parameters
