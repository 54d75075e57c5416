r"""Train the KL-VAE that is bundled with the package, from nothing but seeds.

It learns from frames and mel images of synthetic scenes, and, so that it also codes real videos,
from procedural pictures and sounds. The scenes are those of one seed; every other seed is held
out. Stop it at any time and run it again: it resumes from its last checkpoint, also with another
number of steps or size of crop. ``--export`` writes the bundled weights from the last checkpoint.

The bundled weights were made by these commands, in 75 minutes on one to two cores:

    python scripts/train_bundled_kl_vae.py --run RUN --steps 8500 --decay-steps 4500   # to 4000
    python scripts/train_bundled_kl_vae.py --run RUN --steps 7200 --decay-steps 2800 \
        --crop 96 --batch-size 8
    python scripts/train_bundled_kl_vae.py --run RUN --export

Run again they give weights as good, but not the same bytes: the keys of the random numbers were
changed between them, and another processor or number of threads changes the last bits.
"""

from __future__ import annotations

import argparse
import logging
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from training_pictures import draw_picture, make_sound

from latents.torchaudio_stub import install_torchaudio_stub

install_torchaudio_stub()

from latents.mel import mel_spec, window_image  # noqa: E402
from latents.models.tiny_kl_vae import build_tiny_autoencoder  # noqa: E402
from pipeline.scenes.catalogue import make_scene  # noqa: E402
from training.kl_vae import (  # noqa: E402
    KLVAETrainConfig,
    KLVAETrainer,
    TrainProgress,
    export_kl_vae,
)
from training.picture_stream import pool_pictures  # noqa: E402

SEED = 20_000_001
"""Seed of the training scenes, pictures and sounds."""
SIZE = 256
MEL = "hifigan22k"
WINDOW_SECONDS = 1.6
NUM_PICTURES = 3000
NUM_SCENES = 500
FRAMES_PER_SCENE = 3
WINDOWS_PER_SCENE = 2
NUM_SOUNDS = 1200
SCENE_SECONDS = 4.0
NUM_SCALING_PICTURES = 100
BUNDLED = Path(__file__).resolve().parents[1] / "latents" / "models" / "tiny"

_log = logging.getLogger("train_bundled_kl_vae")


def procedural_picture(index: int) -> NDArray[np.uint8]:
    """One picture, (1, 3, height, width)."""
    picture = draw_picture(np.random.default_rng([SEED, 0, index]), SIZE)
    return picture.transpose(2, 0, 1)[None]


def sound_image(index: int) -> NDArray[np.uint8]:
    """The mel image of one synthetic sound, (1, 3, height, width)."""
    spec = mel_spec(MEL)
    num_samples = round(WINDOW_SECONDS * spec.sample_rate)
    sound = make_sound(np.random.default_rng([SEED, 1, index]), num_samples, spec.sample_rate)
    return window_image(torch.from_numpy(sound.astype(np.float32)), spec).numpy()[None]


def scene_pictures(index: int) -> NDArray[np.uint8]:
    """Frames and mel images of one scene, (picture, 3, height, width)."""
    rng = np.random.default_rng([SEED, 2, index])
    scene = make_scene(SEED, index, seconds=SCENE_SECONDS)
    spec = mel_spec(MEL)
    times = rng.uniform(0, SCENE_SECONDS, FRAMES_PER_SCENE)
    pictures = [scene.frame(t, height=SIZE, width=SIZE).transpose(2, 0, 1) for t in times]
    sound = scene.waveform(spec.sample_rate).mean(axis=0)
    length = round(WINDOW_SECONDS * spec.sample_rate)
    for start in rng.integers(0, len(sound) - length, WINDOWS_PER_SCENE):
        window = np.ascontiguousarray(sound[start : start + length], dtype=np.float32)
        pictures.append(window_image(torch.from_numpy(window), spec).numpy())
    return np.stack(pictures)


def make_pool(workers: int) -> NDArray[np.uint8]:
    """All training pictures, uint8 (picture, 3, height, width)."""
    with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as processes:
        parts = [
            *processes.map(procedural_picture, range(NUM_PICTURES), chunksize=50),
            *processes.map(sound_image, range(NUM_SOUNDS), chunksize=50),
            *processes.map(scene_pictures, range(NUM_SCENES), chunksize=25),
        ]
    return np.concatenate(parts)


def load_pool(path: Path, workers: int) -> NDArray[np.uint8]:
    """The training pictures, made on first use and left on disk until they are read."""
    if not path.exists():
        began = time.monotonic()
        made = make_pool(workers)
        np.save(path, made)
        _log.info("made %d pictures in %.0f s", len(made), time.monotonic() - began)
    pool: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return pool


class ProgressLog:
    """Logs what the trainer reports, with the rate."""

    def __init__(self) -> None:
        self._last = (0, time.monotonic())

    def __call__(self, progress: TrainProgress) -> None:
        """Log one report."""
        step, began = self._last
        self._last = (progress.step, time.monotonic())
        rate = (progress.step - step) / max(1e-9, self._last[1] - began) if step else 0.0
        _log.info(
            "step %d  loss %.4f  psnr %.2f dB  kl %.2f  grad %.2f  lr %.2e  %.2f steps/s",
            progress.step,
            progress.loss,
            progress.psnr,
            progress.kl,
            progress.grad_norm,
            progress.learning_rate,
            rate,
        )


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder for pool and checkpoint")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--decay-steps", type=int, default=8_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="only write the bundled weights")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    pool = load_pool(arguments.run / "pool.npy", arguments.threads)
    config = KLVAETrainConfig(
        steps=arguments.steps,
        decay_steps=arguments.decay_steps,
        batch_size=arguments.batch_size,
        crop=arguments.crop,
        learning_rate=arguments.learning_rate,
        kl_weight=3e-6,
        shards=arguments.threads,
        seed=SEED,
    )
    trainer = KLVAETrainer(build_tiny_autoencoder(SEED), config)
    checkpoint = arguments.run / "checkpoint"
    if checkpoint.exists():
        trainer.restore(checkpoint)
        _log.info("resuming at step %d", trainer.step)
    if arguments.export:
        some = torch.from_numpy(pool[:: len(pool) // NUM_SCALING_PICTURES].copy())
        factor = export_kl_vae(trainer.average, BUNDLED, pictures=some, half=True)
        _log.info("%s: step %d, scaling factor %g", BUNDLED, trainer.step, factor)
        return
    pictures = pool_pictures(torch.from_numpy(pool.copy()), batch_size=config.batch_size, seed=SEED)
    trainer.train(pictures, checkpoint_folder=checkpoint, on_progress=ProgressLog())


if __name__ == "__main__":
    main()
