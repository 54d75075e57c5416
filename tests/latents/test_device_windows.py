"""Windows on a device are those in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latents.cache import device_windows
from latents.cache.device_windows import DeviceWindows
from latents.cache.resident import ResidentWindows
from latents.cache.streaming import StreamingWindows
from tests.latents.window_caches import perceptual_level

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_any_windows_are_those_in_memory(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_windows, "_WINDOWS_AT_A_TIME", 7)
    level = perceptual_level(tmp_path)
    resident = ResidentWindows(level, level.clips)
    with StreamingWindows(level, level.clips) as streaming:
        windows = DeviceWindows(streaming, device)
    chosen = np.random.default_rng(0).integers(0, 40, 100)

    taken = windows.take(chosen)

    for name, array in resident.take(chosen).items():
        assert taken[name].device.type == device
        assert torch.equal(taken[name].cpu(), torch.from_numpy(array))
    assert (windows.num_windows, windows.place(7)) == (40, resident.place(7))


def test_a_window_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    level = perceptual_level(tmp_path, num_clips=2)
    windows = DeviceWindows(ResidentWindows(level, level.clips), "cpu")
    with pytest.raises(IndexError, match="there are 10 windows"):
        windows.take(np.array([10]))
