"""Small caches of windows, fakes of them, and digests of batches, for the tests of readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.cache.batches import GlobalBatches
from latents.cache.layout import CacheLayout
from latents.cache.order import TrainingOrder
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.windows import WindowIndex, Windows, WindowShapes, room_for
from latents.recipe import sha256_hex
from latents.testing import make_cache, perceptual_clips, perceptual_recipes

VIDEO, AUDIO = "perceptual.video", "perceptual.audio"


def perceptual_cache(root: Path, *, num_clips: int = 8, clips_per_shard: int = 2) -> CacheLayout:
    """A cache of the perceptual level, 5 windows a clip."""
    return make_cache(
        root,
        clips=perceptual_clips(num_clips),
        recipes=perceptual_recipes(),
        clips_per_commit=clips_per_shard,
    )


def perceptual_level(root: Path, *, num_clips: int = 8, clips_per_shard: int = 2) -> CachedLevel:
    layout = perceptual_cache(root, num_clips=num_clips, clips_per_shard=clips_per_shard)
    return open_cache(layout.url, level="perceptual")


def batches_of(
    windows: Windows, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> GlobalBatches:
    order = TrainingOrder(num_windows=windows.num_windows, seed=3)
    return GlobalBatches(order=order, batch_size=batch_size, rank=rank, world_size=world_size)


class FakeWindows:
    """Windows that hold their own number. Some take longer than others, and some are damaged."""

    def __init__(self, num_windows: int, *, damaged: Mapping[int, Exception] | None = None) -> None:
        self.index = WindowIndex(np.array([b"clip"]), np.array([num_windows]))
        self.num_windows = num_windows
        self.shapes: WindowShapes = {VIDEO: ((1,), np.dtype(np.int64))}
        self.damaged = dict(damaged or {})
        self.num_taken = 0
        self._lock = threading.Lock()

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        with self._lock:
            self.num_taken += 1
        time.sleep(0.001 * (windows[0] % 3))
        for window in windows.tolist():
            if window in self.damaged:
                raise self.damaged[window]
        taken = room_for(len(windows), self.shapes, out)
        taken[VIDEO][:, 0] = windows
        return taken

    def place(self, window: int) -> tuple[str, int]:
        return self.index.place(window)


def digest_of(epochs: Any, windows: Any, arrays: Mapping[str, Any]) -> str:
    """Of a batch's bytes, whether they are arrays or tensors."""
    parts = [epochs, windows, *(arrays[name] for name in sorted(arrays))]
    return sha256_hex(b"".join(np.asarray(part).tobytes() for part in parts))


def digests_of(windows: Windows, batches: GlobalBatches, steps: Iterable[int]) -> list[str]:
    """What the batches of some steps must be."""
    positions = [batches.at(step) for step in steps]
    return [digest_of(epochs, numbers, windows.take(numbers)) for epochs, numbers in positions]
