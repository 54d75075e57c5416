r"""Train the autoencoder that is bundled with the package, from synthetic scenes alone.

It belongs to the bundled KL-VAE. The scenes of one seed are ingested and trained on; those of
another are only measured, and what was measured is written beside the weights. Stop it at any time
and run it again: it goes on from its last checkpoint. With fewer ``--steps`` it ends sooner: give
``--decay-steps`` too, so that the learning rate has fallen by then.

    python scripts/make_tiny_autoencoder.py --run RUN               # scenes, training, measuring
    python scripts/make_tiny_autoencoder.py --run RUN --export      # the same, then the package's

Run again it gives the same bytes on the same kind of processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

import mmldm
from latents.cache.reader import CachedLevel, open_cache
from latents.config import load_config
from latents.models.autoencoder_files import load_autoencoder
from latents.models.modal_encoder_files import BUNDLED_AUTOENCODER, modal_encoder_files
from training.autoencoder_run import (
    MEASURED_FILE,
    AutoencoderRunSettings,
    DataSettings,
    RunProgress,
    train_autoencoder,
)
from training.reconstruction import ReconstructionError, measure_reconstruction
from training.window_latents import WindowLatents

TRAINING_SEED = 20_000_011
TRAINING_SCENES = f"scenes:{TRAINING_SEED}:432:4"
HELD_OUT_SCENES = "scenes:20000012:36:4"
"""Of another seed, four of each class."""

_log = logging.getLogger("make_tiny_autoencoder")


def scenes_level(folder: Path, scenes: str) -> CachedLevel:
    """The ``kl`` level of scenes, ingested unless it is there."""
    ingest = ["ingest", scenes, "--cache", str(folder), "--levels", "kl", "--workers", "1"]
    status = mmldm.main(ingest)
    if status != 0:
        sys.exit(status)
    return open_cache(folder, level="kl")


def run_settings(*, steps: int, decay_steps: int) -> AutoencoderRunSettings:
    """The preset ``tiny``, for longer; all scenes are trained on."""
    tiny = load_config(AutoencoderRunSettings, kind="autoencoder", presets=["tiny"])
    optimisation = replace(
        tiny.optimisation,
        steps=steps,
        decay_steps=decay_steps,
        ema_decay=0.999,
        seed=TRAINING_SEED,
        checkpoint_steps=500,
    )
    return replace(tiny, optimisation=optimisation, data=DataSettings(validation_share=0))


def log_progress(progress: RunProgress) -> None:
    """One line for each report."""
    train = progress.train
    _log.info(
        "step %d  video %.4f  audio %.4f  kl %.2f  grad %.2f  lr %.2e  %.2f steps/s",
        train.step,
        train.video_error,
        train.audio_error,
        train.kl,
        train.grad_norm,
        train.learning_rate,
        progress.steps_per_second,
    )


def measured(folder: Path, level: CachedLevel, *, steps: int, num_windows: int) -> str:
    """What the saved autoencoder gives back of held-out scenes, as JSON."""
    error: ReconstructionError = measure_reconstruction(
        load_autoencoder(folder), WindowLatents(level, level.clips)
    )
    record = {
        "steps": steps,
        "trained_on": {
            "scenes": TRAINING_SCENES,
            "num_windows": num_windows,
        },
        "held_out": {
            "scenes": HELD_OUT_SCENES,
            **error.to_record(),
        },
    }
    return json.dumps(record, indent=2) + "\n"


def export(folder: Path) -> None:
    """Copies a run's autoencoder, and what was measured, into the package."""
    BUNDLED_AUTOENCODER.mkdir(exist_ok=True)
    for path in (*modal_encoder_files(folder), folder / MEASURED_FILE):
        shutil.copyfile(path, BUNDLED_AUTOENCODER / path.name)
    _log.info("%s: written", BUNDLED_AUTOENCODER)


def main() -> None:
    """Ingest, train, measure; each goes on where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder for caches and checkpoint")
    parser.add_argument("--steps", type=int, default=9_600)
    parser.add_argument("--decay-steps", type=int, default=2_100)
    parser.add_argument("--export", action="store_true", help="write the bundled weights")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    training = scenes_level(arguments.run / "train", TRAINING_SCENES)
    held_out = scenes_level(arguments.run / "held-out", HELD_OUT_SCENES)
    trained = train_autoencoder(
        training,
        run_settings(steps=arguments.steps, decay_steps=arguments.decay_steps),
        out=arguments.run / "autoencoder",
        resume=True,
        device="cpu",
        on_progress=log_progress,
        report_steps=100,
    )
    text = measured(
        trained.folder, held_out, steps=arguments.steps, num_windows=trained.num_windows
    )
    (trained.folder / MEASURED_FILE).write_text(text)
    _log.info("%s: %s", trained.folder, text)
    if arguments.export:
        export(trained.folder)


if __name__ == "__main__":
    main()
