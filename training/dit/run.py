"""A whole training run of a DiT: from caches or packs to a folder that samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latents.cache.batches import WindowOrder
from latents.cache.device_windows import DeviceWindows
from latents.cache.source_split import Split
from latents.cache.windows import NumberedWindows
from latents.errors import CacheError, ConfigError
from latents.recipe import sha256_hex
from training.dit.batches import PairWhitening, WindowBatches
from training.dit.chosen_caches import ChosenCache
from training.dit.files import (
    BegunFrom,
    TrainedDiT,
    dit_files,
    load_dit,
    save_dit,
)
from training.dit.mixed_source import open_sources
from training.dit.model import DiT
from training.dit.settings import DiTRunSettings
from training.dit.source import Reading, TrainingSource, pair_whitening, why_no_window
from training.dit.train import DiTTrainer, TrainProgress, schedule_of
from training.dit.validation import Validation, Validator
from training.metrics import MetricsFile, StepRate, is_noted

CHECKPOINT = Path("checkpoint", "checkpoint.safetensors")
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """Where a run is."""

    train: TrainProgress
    validation: Validation | None
    """Where this step was validated."""
    steps_per_second: float


def train_dit(
    cache: str | Path | Sequence[ChosenCache],
    settings: DiTRunSettings,
    *,
    out: Path,
    ref: str = "current",
    resume: bool,
    device: str,
    on_progress: Callable[[RunProgress], None],
    init: str | Path | None = None,
    reading: Reading = "resident",
) -> TrainedDiT:
    """Trains a DiT on the perceptual level of a cache, or of several, and writes it to ``out``.

    Args:
        cache: Folder or URL, or the file of a pack; or several, each with its ref and weight.
        settings: How.
        out: The folder of the model, with its checkpoint and metrics.
        ref: Which snapshot of a cache that is named alone. A resumed run must find the same
            commits, weights and recipes.
        resume: Go on from the checkpoint.
        device: Where to train.
        on_progress: Told after each step.
        init: A trained DiT to start from, of the same architecture: ``tiny`` for the bundled one,
            or a folder.
        reading: How windows are read. On the CPU it changes no bit; of windows on an accelerator,
            posteriors are drawn and whitened there.

    Returns:
        The average model, as it was saved.

    Raises:
        CacheError: The cache has no such level or ref, or no windows to train on.
        ConfigError: There is a run in ``out`` already, or it began with other settings; or the
            caches do not go together, see `training.dit.mixed_source.MixedSource`.
        ModelError: The checkpoint, or the model to start from, cannot be used.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise ConfigError(
            f"{out} holds a run already; go on with it by --resume, or name another --out"
        )
    source = open_sources(
        _chosen(cache, ref),
        validation_share=settings.data.validation_share,
        reading=reading,
        audible_from_dbfs=settings.data.audible_from_dbfs,
    )
    _require_windows(source)
    whitening = pair_whitening(source)
    begun_from = load_dit(init) if init is not None else None
    model = _first_model(settings, begun_from, name=str(init)).to(device)
    trainer = DiTTrainer(model, settings, pinned=_pinned(source, whitening))
    if checkpoint.exists():
        trainer.restore(checkpoint)
    placed = partial(_placed, source, device=device if reading == "device" else None)
    validator = _validator(source, placed, settings, whitening, device)
    batches = _batches(placed("train"), settings, whitening)
    order = source.order(settings.optimisation.seed)
    _Run(trainer, validator, out, on_progress).train(batches, order)
    trainer.average.copy_to(trainer.model)
    trained = TrainedDiT(
        model=trainer.model.eval(),
        diffusion=settings.diffusion,
        whitening=whitening,
        trained_on=source.trained_on,
        steps=trainer.step,
        begun_from=None if begun_from is None else _record_of(begun_from, name=str(init)),
    )
    save_dit(out, trained)
    return trained


class _Run:
    """What happens between the steps: validation, checkpoints, metrics."""

    def __init__(
        self,
        trainer: DiTTrainer,
        validator: Validator | None,
        out: Path,
        on_progress: Callable[[RunProgress], None],
    ) -> None:
        self._trainer, self._validator, self._out = trainer, validator, out
        self._metrics, self._rate = MetricsFile(out / METRICS_FILE), StepRate(trainer.step)
        self._on_progress = on_progress

    def train(self, batches: WindowBatches, order: WindowOrder) -> None:
        """Trains to the end."""
        self._metrics.forget_after(self._trainer.step)
        self._trainer.train(batches, order, on_step=self._after)

    def _after(self, train: TrainProgress) -> None:
        settings = self._trainer.settings
        last = settings.optimisation.steps
        validation = None
        if train.step == last or train.step % settings.validation.every_steps == 0:
            validation = self._validate()
        if validation is not None or is_noted(train.step, last=last):
            self._note(train, validation)
        if train.step == last or train.step % settings.optimisation.checkpoint_steps == 0:
            self._trainer.save(self._out / CHECKPOINT)
        rate = self._rate.at(train.step)
        self._on_progress(RunProgress(train=train, validation=validation, steps_per_second=rate))

    def _validate(self) -> Validation | None:
        if self._validator is None:
            return None
        model = self._trainer.model
        with self._trainer.average.applied_to(model):
            model.eval()
            validation = self._validator.validate(model)
            model.train()
        return validation

    def _note(self, train: TrainProgress, validation: Validation | None) -> None:
        line: dict[str, Any] = {"train": asdict(train)}
        if validation is not None:
            line["validation"] = asdict(validation)
        self._metrics.note(line)


def _chosen(cache: str | Path | Sequence[ChosenCache], ref: str) -> Sequence[ChosenCache]:
    if isinstance(cache, str | Path):
        return [ChosenCache(cache=cache, ref=ref)]
    if ref != "current":
        raise ValueError(f"ref is {ref!r}, but each of several caches names its own")
    return cache


def _require_windows(source: TrainingSource) -> None:
    if not source.num_windows("train"):
        raise CacheError(
            f"{source.trained_on.caches[0].cache} has no window to train on: "
            f"{why_no_window(source)}"
        )


def _placed(source: TrainingSource, split: Split, *, device: str | None) -> NumberedWindows:
    """The windows of a split, on a device where one is named."""
    windows = source.windows(split)
    return windows if device is None else DeviceWindows(windows, device)


def _batches(
    windows: NumberedWindows, settings: DiTRunSettings, whitening: PairWhitening
) -> WindowBatches:
    return WindowBatches(
        windows=windows,
        whitening=whitening,
        draw=settings.data.draw,
        seed=settings.optimisation.seed,
    )


def _validator(
    source: TrainingSource,
    placed: Callable[[Split], NumberedWindows],
    settings: DiTRunSettings,
    whitening: PairWhitening,
    device: str,
) -> Validator | None:
    if not source.num_windows("validation"):
        return None
    batches = _batches(placed("validation"), settings, whitening)
    return Validator(batches, schedule_of(settings).to(device), settings.validation, device=device)


def _first_model(settings: DiTRunSettings, begun_from: TrainedDiT | None, *, name: str) -> DiT:
    if begun_from is None:
        generator = torch.Generator().manual_seed(settings.optimisation.seed)
        return DiT(settings.model, generator=generator)
    model = begun_from.model
    if model.config != settings.model:
        raise ConfigError(
            f"{name} is {model.config}, but the preset asks for {settings.model}; name the preset "
            "of its size"
        )
    return model


def _record_of(trained: TrainedDiT, *, name: str) -> BegunFrom:
    weights = sha256_hex(dit_files(name)[1].read_bytes())
    return BegunFrom(name=name, steps=trained.steps, weights=weights)


def _pinned(source: TrainingSource, whitening: PairWhitening) -> dict[str, Any]:
    sources = " ".join(source.sources("train"))
    return {
        **source.pinned(),
        "num_windows": source.num_windows("train"),
        # Caches of one commit and equal numbers of windows would pass for one another.
        "sources": sha256_hex(sources.encode())[:16],
        "whitening": {
            "video": whitening.video.to_record(),
            "audio": whitening.audio.to_record(),
        },
    }
