"""Windows of a level in the memory of an accelerator: a batch is one gather there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latents.cache.windows import Windows

_WINDOWS_AT_A_TIME = 4096
"""Of a copy: 80 MB of the perceptual level."""


class DeviceWindows:
    """All of some windows, copied to a device part by part. On a CPU `ResidentWindows` is faster.

    Args:
        windows: Not needed any more after this.
        device: Which.

    Raises:
        DamagedError: The bytes are not what was written.
    """

    def __init__(self, windows: Windows, device: torch.device | str) -> None:
        self.index = windows.index
        self.device = torch.device(device)
        self._tensors = {
            name: torch.from_numpy(np.empty((0, *shape), dtype)).new_empty(
                (self.num_windows, *shape), device=self.device
            )
            for name, (shape, dtype) in windows.shapes.items()
        }
        for first in range(0, self.num_windows, _WINDOWS_AT_A_TIME):
            stop = min(first + _WINDOWS_AT_A_TIME, self.num_windows)
            for name, part in windows.take(np.arange(first, stop)).items():
                self._tensors[name][first:stop] = torch.from_numpy(part)

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return self.index.num_windows

    def take(self, windows: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """Windows by number: for each field (window, ...) on the device, the caller's own.

        Raises:
            IndexError: There is no such window.
        """
        self.index.require(windows)
        chosen = torch.tensor(windows, device=self.device)
        return {name: tensor.index_select(0, chosen) for name, tensor in self._tensors.items()}

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        return self.index.place(window)
