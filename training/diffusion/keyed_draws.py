"""Random numbers of a sample, keyed by what it is: never by worker, place in a batch, or time.

Each (seed, stream, key) has a Philox generator of its own, whose 128-bit key is the start of their
SHA-256. So a sample has the same draws at any batch size, world size and number of workers, and
after resuming. Uniform numbers are the same on every machine; normal ones are numpy's ziggurat,
whose rare tail calls the platform's ``exp`` and ``log1p``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.diffusion.pair import Latents, LatentShapes

Stream = Literal["task", "timestep", "noise", "posterior", "initial", "step", "validation"]
"""What numbers are for. Those of one stream say nothing about those of another."""

Key = tuple[int, ...]
"""Which sample: (epoch, window) in training, (sample index,) or more in sampling."""


def keyed_generator(seed: int, stream: str, key: Key) -> np.random.Generator:
    """The generator of one stream of one sample."""
    text = json.dumps([int(seed), stream, *map(int, key)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def keyed_uniforms(num: int, *, seed: int, stream: Stream, keys: Sequence[Key]) -> Tensor:
    """Numbers in [0, 1), float64 (sample, num)."""
    uniforms = np.empty((len(keys), num))
    for row, key in zip(uniforms, keys, strict=True):
        keyed_generator(seed, stream, key).random(out=row)
    return torch.from_numpy(uniforms)


def keyed_timesteps(num_timesteps: int, *, seed: int, keys: Sequence[Key]) -> Tensor:
    """Timesteps in 0 ... num_timesteps - 1, each as likely, int64 (sample,)."""
    uniforms = keyed_uniforms(1, seed=seed, stream="timestep", keys=keys)
    return (uniforms[:, 0] * num_timesteps).long()


def keyed_noise(shapes: LatentShapes, *, seed: int, stream: Stream, keys: Sequence[Key]) -> Latents:
    """Standard normal latents, float32 (sample, channel, row, column) on the CPU.

    Video and audio have a generator each, so that neither depends on the other's shape.
    """
    return Latents(
        video=_normals(shapes.video, seed, f"{stream}.video", keys),
        audio=_normals(shapes.audio, seed, f"{stream}.audio", keys),
    )


def _normals(shape: tuple[int, int, int], seed: int, stream: str, keys: Sequence[Key]) -> Tensor:
    normals = np.empty((len(keys), math.prod(shape)), dtype=np.float32)
    for row, key in zip(normals, keys, strict=True):
        keyed_generator(seed, stream, key).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(normals).reshape(len(keys), *shape)
