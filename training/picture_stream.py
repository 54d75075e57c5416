"""Streams of pictures to train on; every draw is keyed by a seed and a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

OpenPictures = Callable[[int], Iterator[Tensor]]
"""Opens the stream of uint8 pictures (batch, 3, height, width) at a step, so that a run that was
stopped goes on with the pictures it would have seen."""


def pool_pictures(pool: Tensor, *, batch_size: int, seed: int) -> OpenPictures:
    """A stream over pictures in memory, uint8 (picture, 3, height, width).

    Each batch is drawn with replacement, keyed by (seed, step).
    """
    if len(pool) == 0:
        raise ValueError("the pool holds no pictures")

    def open_pictures(step: int) -> Iterator[Tensor]:
        while True:
            rng = generator_of(seed, "pool", step)
            yield pool[torch.randint(len(pool), (batch_size,), generator=rng)]
            step += 1

    return open_pictures


def random_crops(pictures: Tensor, crop: int, rng: torch.Generator) -> Tensor:
    """A square (batch, 3, crop, crop) out of each picture (batch, 3, height, width).

    Raises:
        ValueError: The pictures are smaller than the crop.
    """
    height, width = pictures.shape[-2:]
    if min(height, width) < crop:
        raise ValueError(f"pictures of {height}x{width} are smaller than the crop, {crop}")
    tops = torch.randint(height - crop + 1, (len(pictures),), generator=rng).tolist()
    lefts = torch.randint(width - crop + 1, (len(pictures),), generator=rng).tolist()
    crops = [
        picture[:, top : top + crop, left : left + crop]
        for picture, top, left in zip(pictures, tops, lefts, strict=True)
    ]
    return torch.stack(crops)


def generator_of(seed: int, purpose: str, step: int) -> torch.Generator:
    """Random numbers of one step. The key is hashed, since torch uses 32 bits of a seed only."""
    key = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:4], "little"))
