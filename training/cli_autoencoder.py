"""``mmldm train autoencoder``: modal encoders and their decoder, from a cache's kl level."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.run_options import (
    add_device_options,
    add_run_options,
    interruptible,
    prepare_device,
    sections,
)

if TYPE_CHECKING:
    from training.autoencoder_run import RunProgress, TrainedAutoencoder

Commands = argparse._SubParsersAction


def add_autoencoder(models: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``train autoencoder``."""
    parser = models.add_parser(
        "autoencoder",
        help="kl level -> modal encoders and a signal decoder",
        description="Trains a small multi-modal autoencoder on the windows of a cache's kl level. "
        "`mmldm refresh --autoencoder A` makes the perceptual level by it. `--preset tiny --preset "
        "finetune --init tiny` goes on from the bundled one.",
    )
    parser.add_argument("--cache", required=True, metavar="C", help="a folder, or a URL (s3://...)")
    parser.add_argument("--out", required=True, type=Path, metavar="A", help="its folder")
    parser.add_argument("--ref", default="current", help="which snapshot to train on")
    add_device_options(parser)
    add_run_options(parser, letter="A", presets="tiny, or a .toml; then finetune")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_train_autoencoder)


def _train_autoencoder(arguments: argparse.Namespace) -> int:
    from latents.cache.reader import open_cache
    from latents.config import load_config
    from training.autoencoder_run import (
        CHECKPOINT_FILE,
        AutoencoderRunSettings,
        train_autoencoder,
    )

    settings = load_config(
        AutoencoderRunSettings,
        kind="autoencoder",
        presets=arguments.preset or ["tiny"],
        overrides=sections(arguments.overrides),
    )
    level = open_cache(arguments.cache, level="kl", ref=arguments.ref)
    with interruptible(arguments.out / CHECKPOINT_FILE):
        trained = train_autoencoder(
            level,
            settings,
            out=arguments.out,
            resume=arguments.resume,
            device=prepare_device(arguments),
            init=arguments.init,
            on_progress=AutoencoderReporter(settings.optimisation.steps),
        )
    sys.stdout.write((_json(trained) if arguments.json else _text(trained)) + "\n")
    return 0


class AutoencoderReporter:
    """Tells where a run is, how fast it goes, and what is left."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def __call__(self, progress: RunProgress) -> None:
        """Told now and then."""
        train, rate = progress.train, progress.steps_per_second
        left = (self._num_steps - train.step) / max(rate, 1e-9)
        sys.stderr.write(
            f"step {train.step}/{self._num_steps}  video {train.video_error:.4f}  audio "
            f"{train.audio_error:.4f}  KL {train.kl:.2f}  {rate:.2f} steps/s  {left:.0f} s left\n"
        )


def _json(trained: TrainedAutoencoder) -> str:
    held_out = trained.held_out.to_record() if trained.held_out else None
    return json.dumps(
        {"out": str(trained.folder), "num_windows": trained.num_windows, "held_out": held_out}
    )


def _text(trained: TrainedAutoencoder) -> str:
    text = f"{trained.folder}: trained on {trained.num_windows} windows"
    if trained.held_out is None:
        return text
    return (
        f"{text}; of {trained.held_out.num_windows} held-out windows, the frames' error is "
        f"{trained.held_out.video_ratio:.2f} of that of the window's mean frame, the sound's "
        f"{trained.held_out.audio_error:.3f} (whitened)"
    )
