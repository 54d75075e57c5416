r"""Train the DiT that is bundled with the package, on the perceptual latents of synthetic scenes.

It belongs to the bundled autoencoder, and trains on the scenes that `make_tiny_autoencoder.py` has
ingested. Those of another seed are only measured, and what was measured is written beside the
weights. Stop it at any time and run it again: it goes on from its last checkpoint.

    python scripts/make_tiny_autoencoder.py --run RUN --export
    python scripts/make_tiny_dit.py --run RUN                # latents, training
    python scripts/make_tiny_dit.py --run RUN --export       # the same, then measures and packages

Run again it gives the same bytes on the same kind of processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from make_tiny_autoencoder import HELD_OUT_SCENES, TRAINING_SCENES, scenes_level

import mmldm
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.splits import clips_of_split
from latents.config import load_config
from latents.durable import replace_file
from training.dit.files import BUNDLED_DIT, MEASURED_FILE, TrainedDiT, load_dit, save_dit
from training.dit.measure import measure_dit
from training.dit.run import METRICS_FILE, RunProgress, train_dit
from training.dit.settings import DiTRunSettings, ValidationSettings

SEED = 20_000_021
REPORT_STEPS = 100
HELD_OUT = ValidationSettings(num_windows=1000, draws=4, batch_size=16)
"""All windows of the scenes of another seed."""

_log = logging.getLogger("make_tiny_dit")


def perceptual_level(cache: Path) -> CachedLevel:
    """The latents of the bundled autoencoder, made unless they are there."""
    status = mmldm.main(["refresh", "--cache", str(cache), "--autoencoder", "tiny"])
    if status != 0:
        sys.exit(status)
    return open_cache(cache, level="perceptual")


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
    # Often: to go by the other modality is what takes longest to learn.
    tasks = replace(tiny.tasks, audio_to_video=0.4, video_to_audio=0.4)
    return replace(tiny, optimisation=optimisation, validation=validation, tasks=tasks)


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


def export(trained: TrainedDiT, folder: Path) -> TrainedDiT:
    """Writes a folder of half the bytes; the model as it is read from there."""
    # Where the cache was is of no use to anybody else.
    (cache,) = trained.trained_on.caches
    named = replace(cache, cache="scripts/make_tiny_autoencoder.py")
    trained_on = replace(trained.trained_on, caches=(named,))
    save_dit(folder, replace(trained, trained_on=trained_on), half=True)
    return load_dit(folder.absolute())


def measured(trained: TrainedDiT, metrics: Path, *, num_windows: int, held_out: Path) -> str:
    """What the model was trained on and how it denoises scenes that it never saw, as JSON."""
    scenes_level(held_out, HELD_OUT_SCENES)
    found = measure_dit(trained, perceptual_level(held_out), HELD_OUT)
    last = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    record: dict[str, Any] = {
        "steps": trained.steps,
        "trained_on": {"scenes": TRAINING_SCENES, "num_windows": num_windows},
        "validation": last["validation"],
        "held_out": {"scenes": HELD_OUT_SCENES, **asdict(found)},
    }
    return json.dumps(record, indent=2) + "\n"


def main() -> None:
    """Makes the latents where they are missing, and trains."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder for caches and checkpoint")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--decay-steps", type=int, default=2500)
    parser.add_argument(
        "--export",
        type=Path,
        nargs="?",
        const=BUNDLED_DIT,
        help="write it in float16; without a folder, as the bundled one",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.Formatter.converter = time.gmtime
    torch.set_num_threads(1)
    cache, out = arguments.run / "train", arguments.run / "dit"
    level = perceptual_level(cache)
    settings = run_settings(steps=arguments.steps, decay_steps=arguments.decay_steps)
    trained = train_dit(
        cache,
        settings,
        out=out,
        ref="current",
        resume=True,
        device="cpu",
        on_progress=log_progress,
    )
    if arguments.export is not None:
        exported = export(trained, arguments.export)
        share = settings.data.validation_share
        clips = clips_of_split(level, "train", validation_share=share)
        text = measured(
            exported,
            out / METRICS_FILE,
            num_windows=clips.num_windows,
            held_out=arguments.run / "held-out",
        )
        replace_file(arguments.export / MEASURED_FILE, text.encode())
        _log.info("%s: %s", arguments.export, text)


if __name__ == "__main__":
    main()
