r"""Train a tiny DiT to be bundled with the package, on the perceptual latents of synthetic scenes.

It belongs to the bundled autoencoder, and trains on the scenes that `make_tiny_autoencoder.py` has
ingested. Stop it at any time and run it again: it goes on from its last checkpoint.

    python scripts/make_tiny_autoencoder.py --run RUN --export
    python scripts/make_tiny_dit.py --run RUN                       # latents, training, measuring
    python scripts/make_tiny_dit.py --run RUN --export FOLDER       # the same, then half the bytes

Run again it gives the same bytes on the same kind of processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import mmldm
from latents.config import load_config
from latents.durable import replace_file
from training.dit.files import save_dit
from training.dit.run import METRICS_FILE, RunProgress, train_dit
from training.dit.settings import DiTRunSettings

SEED = 20_000_021
REPORT_STEPS = 100

_log = logging.getLogger("make_tiny_dit")


def run_settings(*, steps: int, decay_steps: int) -> DiTRunSettings:
    """The preset ``tiny``, for longer."""
    tiny = load_config(DiTRunSettings, kind="dit", presets=["tiny"])
    optimisation = replace(
        tiny.optimisation,
        steps=steps,
        decay_steps=decay_steps,
        ema_decay=0.999,
        seed=SEED,
        checkpoint_steps=250,
    )
    validation = replace(tiny.validation, every_steps=1000, num_windows=128, draws=4)
    return replace(tiny, optimisation=optimisation, validation=validation)


def log_progress(progress: RunProgress) -> None:
    """One line every so many steps, and for each validation."""
    train = progress.train
    if train.step % REPORT_STEPS == 0:
        _log.info(
            "step %d  video %.4f  audio %.4f  %.2f steps/s",
            train.step,
            train.video_loss,
            train.audio_loss,
            progress.steps_per_second,
        )
    if progress.validation is not None:
        losses = progress.validation.losses.items()
        _log.info("held out  %s", {c: (round(v.video, 4), round(v.audio, 4)) for c, v in losses})


def main() -> None:
    """Makes the latents where they are missing, and trains."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--decay-steps", type=int, default=6_000)
    parser.add_argument("--export", type=Path, help="where to write it in float16")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.Formatter.converter = time.gmtime
    torch.set_num_threads(1)
    cache, out = arguments.run / "train", arguments.run / "dit"
    status = mmldm.main(["refresh", "--cache", str(cache), "--autoencoder", "tiny"])
    if status != 0:
        sys.exit(status)
    trained = train_dit(
        cache,
        run_settings(steps=arguments.steps, decay_steps=arguments.decay_steps),
        out=out,
        ref="current",
        resume=True,
        device="cpu",
        on_progress=log_progress,
    )
    if arguments.export is not None:
        # Where the cache was is of no use to anybody else.
        trained_on = replace(trained.trained_on, cache="scripts/make_tiny_autoencoder.py")
        save_dit(arguments.export, replace(trained, trained_on=trained_on), half=True)
        last = json.loads((out / METRICS_FILE).read_text(encoding="utf-8").splitlines()[-1])
        measured = json.dumps(last, indent=2).encode() + b"\n"
        replace_file(arguments.export / "measured.json", measured)
        _log.info("%s: written", arguments.export)


if __name__ == "__main__":
    main()
