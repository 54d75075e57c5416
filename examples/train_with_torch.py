"""A small autoencoder learns to squeeze the latents of windows, in plain PyTorch.

    python examples/train_with_torch.py CACHE CHECKPOINT STEPS
    torchrun --nproc-per-node 2 examples/train_with_torch.py CACHE CHECKPOINT STEPS

Where CHECKPOINT is there, it goes on to STEPS steps, on any number of processes: together they see
the same windows in the same order. Of whitened latents, always giving the mean is an error of 1.

    $ mmldm ingest scenes:0:48:4 --cache cache --levels perceptual --autoencoder tiny
    $ python examples/train_with_torch.py cache model.pt 100
    100 steps: error 0.717 on 77 windows
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import mse_loss

from latents.cache.batches import GlobalBatches
from latents.cache.order import TrainingOrder
from latents.cache.reader import ClipRows, open_cache
from latents.cache.resident import ResidentWindows
from latents.cache.source_split import SPLITS
from latents.cache.splits import clips_of_split
from latents.cache.streaming import StreamingWindows
from latents.cache.torch_loader import TensorBatch, WindowDataLoader
from latents.durable import replace_file
from latents.posterior import posterior_mode
from latents.whitening import whitening_of


class Squeeze(nn.Module):
    """Takes both latents of a window, whitened, through a quarter of their channels and back."""

    def __init__(self, clips: ClipRows) -> None:
        super().__init__()
        fields = clips[0].rows
        self.whitening = {name: whitening_of(clips.sums(name)) for name in fields}
        self.layers = nn.ModuleList(_through_few(len(w.mean)) for w in self.whitening.values())

    def forward(self, batch: TensorBatch) -> Tensor:
        """Mean squared error of what comes back, ()."""
        latents = [w.whiten(posterior_mode(batch[name])) for name, w in self.whitening.items()]
        errors = [mse_loss(layer(x), x) for layer, x in zip(self.layers, latents, strict=True)]
        return torch.stack(errors).mean()


def _through_few(num_channels: int) -> nn.Sequential:
    few = max(1, num_channels // 4)
    there = nn.Conv2d(num_channels, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, few, 1)
    back = nn.Conv2d(few, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, num_channels, 1)
    return nn.Sequential(*there, *back)


def batches_of(num_windows: int, *, rank: int, world_size: int) -> GlobalBatches:
    """Every window once in each epoch, 32 at a step; of each batch, this rank's part."""
    order = TrainingOrder(num_windows=num_windows, seed=0)
    return GlobalBatches(order=order, batch_size=32, rank=rank, world_size=world_size)


def save(path: Path, parts: Mapping[str, Any]) -> None:
    """Replaces a checkpoint as a whole; of the loader it holds four numbers."""
    content = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, content)
    replace_file(path, content.getvalue())


def load(path: Path, parts: Mapping[str, Any]) -> None:
    """Goes on from a checkpoint; raises `ConfigError` where it is of other windows."""
    for name, state in torch.load(path, map_location="cpu", weights_only=True).items():
        parts[name].load_state_dict(state)


def main(cache: str, checkpoint: Path, num_steps: int) -> None:
    """Trains on some sources and says how well the model does on the others."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(gpu if torch.cuda.is_available() else "cpu")
    level = open_cache(cache, level="perceptual")
    clips, held_out, _ = (clips_of_split(level, one, validation_share=0.2) for one in SPLITS)
    if not clips or not held_out:
        sys.exit(f"{cache}: too few sources to train on some and hold out others; ingest more")
    if world_size > 1:
        distributed.init_process_group()
    torch.manual_seed(0)
    model = Squeeze(clips).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with StreamingWindows(level, clips) as windows:
        batches = batches_of(windows.num_windows, rank=rank, world_size=world_size)
        # Torch's DataLoader underneath: a worker reads ahead, and the state counts what was given.
        loader = WindowDataLoader(windows, batches, stop_step=num_steps, num_workers=1)
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        if checkpoint.exists():
            load(checkpoint, parts)
        trained = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
        for batch in loader:
            optimizer.zero_grad()
            trained({name: tensor.to(device) for name, tensor in batch.items()}).backward()
            optimizer.step()
    if rank == 0:
        save(checkpoint, parts)
        others = ResidentWindows(level, held_out)
        with torch.no_grad():
            error = model({n: torch.from_numpy(t).to(device) for n, t in others.tensors.items()})
        sys.stdout.write(f"{num_steps} steps: error {error:.3f} on {others.num_windows} windows\n")
    if world_size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
