"""``mmldm train dit``: the diffusion transformer, from perceptual levels or packs alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from latents.errors import ConfigError
from training.run_options import (
    add_device_options,
    add_run_options,
    interruptible,
    prepare_device,
    sections,
)

if TYPE_CHECKING:
    from training.dit.config import DiTConfig
    from training.dit.run import RunProgress
    from training.dit.settings import DiTRunSettings

Commands = argparse._SubParsersAction

_REPORT_SECONDS = 5.0


def add_dit(models: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``train dit``."""
    dit = models.add_parser(
        "dit",
        help="perceptual level -> DiT",
        description="Trains MM-LDM's diffusion transformer on the perceptual level of a cache. No "
        "video, KL-VAE or encoder is needed for it. `--preset tiny --preset finetune --init tiny` "
        "goes on from the bundled one.",
    )
    dit.add_argument(
        "--cache",
        action="append",
        metavar="C[=WEIGHT]",
        help="a folder, a URL (s3://...), or a pack (*.safetensors); may be repeated: windows of "
        "weight 2 are seen twice as often as those of weight 1, the default",
    )
    dit.add_argument("--out", type=Path, metavar="D", help="the model's folder")
    dit.add_argument(
        "--ref",
        action="append",
        default=[],
        help="which snapshot to train on (default: current): once for all caches, or once for "
        "each in the same order",
    )
    dit.add_argument(
        "--reading",
        choices=("resident", "device", "streaming"),
        default="resident",
        help="windows: all in memory, all in the memory of --device, or read from their shards as "
        "they come; a pack is mapped from its file instead of the first and the last",
    )
    add_device_options(dit)
    add_run_options(dit, letter="D", presets="tiny, S, B, L, XL, or a .toml; then finetune")
    dit.add_argument(
        "--describe", action="store_true", help="only say how large the preset's model is"
    )
    dit.add_argument("--json", action="store_true", help="results as JSON")
    dit.set_defaults(run=_train_dit)


def _train_dit(arguments: argparse.Namespace) -> int:
    from latents.config import load_config
    from training.dit.settings import DiTRunSettings

    settings = load_config(
        DiTRunSettings,
        kind="dit",
        presets=arguments.preset or ["tiny"],
        overrides=sections(arguments.overrides),
    )
    if arguments.describe:
        return _describe(settings.model, as_json=arguments.json)
    if arguments.cache is None or arguments.out is None:
        raise ConfigError("training needs --cache C and --out D; --describe needs neither")
    return _run(arguments, settings)


def _run(arguments: argparse.Namespace, settings: DiTRunSettings) -> int:
    from training.dit.chosen_caches import chosen_caches
    from training.dit.run import CHECKPOINT, METRICS_FILE, train_dit

    with interruptible(arguments.out / CHECKPOINT):
        trained = train_dit(
            chosen_caches(arguments.cache, arguments.ref, is_path=os.path.exists),
            settings,
            out=arguments.out,
            resume=arguments.resume,
            device=prepare_device(arguments),
            init=arguments.init,
            reading=arguments.reading,
            on_progress=DiTReporter(settings.optimisation.steps),
        )
    num_silent = sum(cache.num_silent for cache in trained.trained_on.caches)
    if arguments.json:
        losses = _last_validation(arguments.out / METRICS_FILE)
        found = {"out": str(arguments.out), "steps": trained.steps, "losses": losses}
        _write(json.dumps({**found, "num_silent": num_silent}))
    else:
        if num_silent:
            _write(f"{num_silent} silent clips were left out (data.silent)")
        _write(f"{arguments.out}: trained for {trained.steps} steps")
    return 0


def _last_validation(metrics: Path) -> object:
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]).get("validation", {}).get("losses") if lines else None


class DiTReporter:
    """Tells every few seconds, and at each validation, where a run is."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._last = time.monotonic()

    def __call__(self, progress: RunProgress) -> None:
        """Told after each step."""
        train, validation = progress.train, progress.validation
        is_last = train.step == self._num_steps
        if validation is None and not is_last and time.monotonic() < self._last + _REPORT_SECONDS:
            return
        self._last = time.monotonic()
        left = (self._num_steps - train.step) / max(progress.steps_per_second, 1e-9)
        sys.stderr.write(
            f"step {train.step}/{self._num_steps}  epoch {train.epoch:.2f}  "
            f"video {train.video_loss:.4f}  audio {train.audio_loss:.4f}  "
            f"{progress.steps_per_second:.2f} steps/s  {left:.0f} s left\n"
        )
        if validation is not None:
            cases = "  ".join(
                f"{case} {loss.video:.4f}/{loss.audio:.4f}"
                for case, loss in validation.losses.items()
            )
            sys.stderr.write(f"held out ({validation.num_windows} windows, video/audio)  {cases}\n")


def _describe(config: DiTConfig, *, as_json: bool) -> int:
    from training.dit.describe import describe

    found = describe(config)
    if as_json:
        _write(json.dumps(asdict(found)))
    else:
        _write(
            f"{found.num_parameters / 1e6:.1f} M parameters, {found.gmacs:.1f} GMAC a step of one "
            f"sample, {found.num_tokens} tokens"
        )
    return 0


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
