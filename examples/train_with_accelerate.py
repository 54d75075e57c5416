"""The model of ``train_with_torch.py`` beside this, trained through Hugging Face Accelerate.

    python examples/train_with_accelerate.py CACHE CHECKPOINT STEPS
    torchrun --nproc-per-node 2 examples/train_with_accelerate.py CACHE CHECKPOINT STEPS

Both read and write the same checkpoints. Of the cache of 48 scenes made there:

    $ python examples/train_with_accelerate.py cache model.pt 100
    step 0: error 0.956
    step 20: error 0.881
    step 40: error 0.689
    step 60: error 0.749
    step 80: error 0.650
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.optim import AdamW
from train_with_torch import Squeeze, batches_of, load, save

from latents.cache.reader import open_cache
from latents.cache.splits import clips_of_split
from latents.cache.streaming import StreamingWindows
from latents.cache.torch_loader import WindowDataLoader


def main(cache: str, checkpoint: Path, num_steps: int) -> None:
    """Trains on the sources that are not held out."""
    # Without a GPU it has to be told; otherwise each of several processes would train alone.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    level = open_cache(cache, level="perceptual")
    clips = clips_of_split(level, "train", validation_share=0.2)
    torch.manual_seed(0)
    model = Squeeze(clips)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    with StreamingWindows(level, clips) as windows:
        batches = batches_of(
            windows.num_windows,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        # Each process reads its own part of each batch, so this is not prepared. Of a DataLoader of
        # a `WindowDataset`, `prepare` would let the first process read alone and deal out what that
        # reads: its own part, in turn to all, and the parts of the others to nobody.
        loader = WindowDataLoader(windows, batches, stop_step=num_steps, num_workers=1)
        # Not `load_state`: it unpickles the state of what is registered with the accelerator.
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        if checkpoint.exists():
            load(checkpoint, parts)
        trained, stepped = accelerator.prepare(model, optimizer)
        for batch in loader:
            loss = trained(send_to_device(batch, accelerator.device))
            accelerator.backward(loss)
            stepped.step()
            stepped.zero_grad()
            if accelerator.is_main_process and batch["step"] % 20 == 0:
                sys.stdout.write(f"step {batch['step']}: error {loss.detach():.3f}\n")
    if accelerator.is_main_process:
        save(checkpoint, parts)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
