"""``mmldm train``: models from cached data."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latents.errors import InterruptedJobError
from training.cli_dit import add_dit, in_section

if TYPE_CHECKING:
    from training.kl_vae import TrainProgress

Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``train`` and the models it trains."""
    train = commands.add_parser("train", help="train a model from a cache")
    models = train.add_subparsers(dest="model", required=True, metavar="MODEL")
    kl_vae = models.add_parser(
        "kl-vae",
        help="clip level -> KL-VAE",
        description="Trains a KL-VAE on the frames and mel images of a cache's clip level.",
    )
    kl_vae.add_argument("--cache", required=True, type=Path, metavar="C")
    kl_vae.add_argument("--out", required=True, type=Path, metavar="V")
    kl_vae.add_argument(
        "--init", metavar="V", help="start from this KL-VAE instead of fresh weights"
    )
    kl_vae.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    kl_vae.add_argument("--preset", action="append", default=[], metavar="P")
    kl_vae.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")
    kl_vae.set_defaults(run=_train_kl_vae)
    add_dit(models)


def _train_kl_vae(arguments: argparse.Namespace) -> int:
    from latents.cache.reader import open_cache
    from latents.config import load_config
    from training.clip_pictures import ClipPictures
    from training.kl_vae_run import KLVAERunSettings, train_kl_vae

    settings = load_config(
        KLVAERunSettings,
        kind="kl-vae",
        presets=arguments.preset or ["tiny"],
        overrides=[in_section(override) for override in arguments.overrides],
    )
    level = open_cache(arguments.cache, level="clip")
    pictures = ClipPictures(
        level,
        settings.pictures,
        batch_size=settings.optimisation.batch_size,
        crop=settings.optimisation.crop,
        seed=settings.optimisation.seed,
    )
    try:
        factor = train_kl_vae(
            pictures,
            settings,
            out=arguments.out,
            init=arguments.init,
            resume=arguments.resume,
            on_progress=_write_progress,
        )
    except KeyboardInterrupt:
        raise InterruptedJobError(
            signal.SIGINT,
            f"interrupted; the last checkpoint in {arguments.out} stays. Run the same command "
            "with --resume and it goes on from there",
        ) from None
    sys.stdout.write(f"{arguments.out}: trained, scaling factor {factor:.4f}\n")
    return 0


def _write_progress(progress: TrainProgress) -> None:
    sys.stderr.write(
        f"step {progress.step}  PSNR {progress.psnr:.2f} dB  loss {progress.loss:.4f}  "
        f"KL {progress.kl:.2f}\n"
    )
