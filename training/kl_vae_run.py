"""A whole training run of a KL-VAE: from pictures to a folder that can encode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from latents.errors import ConfigError
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import AutoencoderKL
from latents.models.tiny_kl_vae import build_tiny_autoencoder
from training.clip_pictures import ClipPictures, PictureSettings
from training.kl_vae import KLVAETrainConfig, KLVAETrainer, TrainProgress, export_kl_vae

NUM_BATCHES_MEASURED = 4
"""Batches over which the scaling factor is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAERunSettings:
    """All tables of a KL-VAE preset."""

    optimisation: KLVAETrainConfig
    pictures: PictureSettings = field(default_factory=PictureSettings)


def train_kl_vae(
    pictures: ClipPictures,
    settings: KLVAERunSettings,
    *,
    out: Path,
    init: str | None,
    resume: bool,
    on_progress: Callable[[TrainProgress], None],
) -> float:
    """Trains a KL-VAE and writes ``out/config.json`` and safetensors.

    The scaling factor is one over the standard deviation of the posterior means of some batches.

    Args:
        pictures: What to train on.
        settings: How.
        out: The folder; the checkpoint lies in ``out/checkpoint``.
        init: A KL-VAE to start from, as `load_kl_vae` takes it; None for a fresh tiny one.
        resume: Go on from the checkpoint.
        on_progress: Told now and then.

    Returns:
        The scaling factor.

    Raises:
        ModelError: The model to start from, or the checkpoint, cannot be loaded.
        ConfigError: The checkpoint was trained with other settings.
    """
    config = settings.optimisation
    autoencoder = (
        load_kl_vae(init).autoencoder if init else build_tiny_autoencoder(seed=config.seed)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    move: Callable[..., AutoencoderKL] = autoencoder.requires_grad_(True).to
    trainer = KLVAETrainer(move(device), config)
    checkpoint = out / "checkpoint"
    if checkpoint.exists():
        if not resume:
            raise ConfigError(
                f"{out} holds a run already; go on with it by --resume, or name another --out"
            )
        trainer.restore(checkpoint)
    trainer.train(pictures.open, checkpoint_folder=checkpoint, on_progress=on_progress)
    measured = torch.cat([pictures.batch(step) for step in range(NUM_BATCHES_MEASURED)])
    return export_kl_vae(trainer.average, out, pictures=measured)
