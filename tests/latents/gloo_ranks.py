"""What each rank of a training does with windows: a process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from latents.cache.torch_loader import TensorBatch, WindowDataLoader
from latents.cache.windows import Windows
from tests.latents.window_caches import batches_of, digest_of

World = tuple[int, int, int]
"""Number of ranks, and the steps that they go from and to."""


def gather_digests(
    rank: int, windows: Windows, batch_size: int, worlds: Sequence[World], folder: Path
) -> None:
    """Writes the digests of the global batches of some worlds, put together of all ranks' parts."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=max(size for size, _, _ in worlds),
        timeout=timedelta(seconds=120),
    )
    digests = []
    for size, first, stop in worlds:
        group = distributed.new_group(list(range(size)))
        if rank < size:
            batches = batches_of(windows, batch_size, rank=rank, world_size=size)
            loader = WindowDataLoader(windows, batches, stop_step=stop)
            # A position that a single rank kept.
            loader.load_state_dict(batches_of(windows, batch_size).state_at(first))
            digests.append([digest_of_all(part, size, group) for part in loader])
    (folder / f"{rank}.json").write_text(json.dumps(digests))
    distributed.destroy_process_group()


def digest_of_all(part: TensorBatch, world_size: int, group: Any) -> str:
    """Of the global batch that this rank's part is of."""
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, part, group=group)
    whole = {name: torch.cat([one[name] for one in parts]) for name in part if name != "step"}
    return digest_of(whole.pop("epochs"), whole.pop("windows"), whole)
