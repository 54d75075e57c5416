"""``mmldm train kl-vae``: a KL-VAE, from a cache's clip level."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.run_options import add_run_options, interruptible, sections

if TYPE_CHECKING:
    from training.kl_vae import TrainProgress

Commands = argparse._SubParsersAction


def add_kl_vae(models: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``train kl-vae``."""
    kl_vae = models.add_parser(
        "kl-vae",
        help="clip level -> KL-VAE",
        description="Trains a KL-VAE on the frames and mel images of a cache's clip level.",
    )
    kl_vae.add_argument("--cache", required=True, type=Path, metavar="C")
    kl_vae.add_argument("--out", required=True, type=Path, metavar="V")
    add_run_options(kl_vae, letter="V", presets="tiny, or a .toml")
    kl_vae.set_defaults(run=_train_kl_vae)


def _train_kl_vae(arguments: argparse.Namespace) -> int:
    from latents.cache.reader import open_cache
    from latents.config import load_config
    from training.clip_pictures import ClipPictures
    from training.kl_vae_run import KLVAERunSettings, train_kl_vae

    settings = load_config(
        KLVAERunSettings,
        kind="kl-vae",
        presets=arguments.preset or ["tiny"],
        overrides=sections(arguments.overrides),
    )
    level = open_cache(arguments.cache, level="clip")
    pictures = ClipPictures(
        level,
        settings.pictures,
        batch_size=settings.optimisation.batch_size,
        crop=settings.optimisation.crop,
        seed=settings.optimisation.seed,
    )
    with interruptible(arguments.out / "checkpoint"):
        factor = train_kl_vae(
            pictures,
            settings,
            out=arguments.out,
            init=arguments.init,
            resume=arguments.resume,
            on_progress=_write_progress,
        )
    sys.stdout.write(f"{arguments.out}: trained, scaling factor {factor:.4f}\n")
    return 0


def _write_progress(progress: TrainProgress) -> None:
    sys.stderr.write(
        f"step {progress.step}  PSNR {progress.psnr:.2f} dB  loss {progress.loss:.4f}  "
        f"KL {progress.kl:.2f}\n"
    )
