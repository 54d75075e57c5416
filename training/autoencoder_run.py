"""A whole training run of a small autoencoder: from the ``kl`` level to a folder that encodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latents.cache.reader import CachedLevel
from latents.cache.splits import clips_of_split
from latents.durable import replace_file
from latents.errors import ConfigError
from latents.models.autoencoder_files import (
    Autoencoder,
    fresh_autoencoder,
    load_autoencoder,
    save_autoencoder,
    tiny_autoencoder_config,
)
from training.autoencoder import (
    AutoencoderTrainer,
    LossSettings,
    TrainProgress,
)
from training.linear_start import start_as_linear_codec
from training.metrics import MetricsFile, StepRate, is_noted
from training.optim import OptimisationSettings
from training.reconstruction import ReconstructionError, measure_reconstruction
from training.window_latents import VariationSettings, WindowBatches, WindowLatents

CHECKPOINT_FILE = "checkpoint.safetensors"
MEASURED_FILE = "measured.json"
METRICS_FILE = "metrics.jsonl"
_NUM_ANALYSED = 512
"""Windows from which the linear start is made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """The table ``[model]``."""

    decoder_channels: int = 64
    """Channels of the signal decoder's trunk."""
    coarse_blocks: int = 4
    """Its residual blocks at half the size of a KL latent."""
    fine_blocks: int = 2
    """Its residual blocks at the full size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """The table ``[data]``."""

    validation_share: float = 0.1
    """Share of the sources that is held out, where people named no split."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; it must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRunSettings:
    """All tables of an autoencoder preset."""

    optimisation: OptimisationSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    variation: VariationSettings = field(default_factory=VariationSettings)
    data: DataSettings = field(default_factory=DataSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """Where a run is."""

    train: TrainProgress
    """The last step, with the means of the errors since the last report."""
    steps_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedAutoencoder:
    """What a run ended with."""

    folder: Path
    num_windows: int
    """Windows trained on."""
    held_out: ReconstructionError | None
    """Of windows of held-out sources; None where none is held out."""


def train_autoencoder(
    level: CachedLevel,
    settings: AutoencoderRunSettings,
    *,
    out: Path,
    resume: bool,
    device: str,
    init: str | Path | None = None,
    on_progress: Callable[[RunProgress], None],
    report_steps: int = 50,
) -> TrainedAutoencoder:
    """Trains an autoencoder and writes ``out`` as a folder that `load_modal_encoders` reads.

    Its weights are the moving average. ``out/measured.json`` says how well held-out windows are
    given back, ``out/metrics.jsonl`` has the losses of some steps, and
    ``out/checkpoint.safetensors`` is where an interrupted run goes on.

    Args:
        level: ``kl``, opened.
        settings: How.
        out: The folder; created if it does not exist.
        resume: Go on from the checkpoint, if there is one.
        device: Where to train, such as ``cpu`` or ``cuda``.
        init: An autoencoder to start from: ``tiny`` for the bundled one, or a folder; None for a
            fresh one.
        on_progress: Told every ``report_steps``, and at the end.
        report_steps: Steps between two reports.

    Raises:
        CacheError: No clips are trained on, or the cache's windows differ in shape.
        ConfigError: The settings do not fit the cache, or ``out`` holds another run.
        ModelError: The checkpoint cannot be read or written, or nothing to start from be loaded.
    """
    checkpoint = out / CHECKPOINT_FILE
    if checkpoint.exists() and not resume:
        raise ConfigError(
            f"{out} holds a run already; go on with it by --resume, or name another --out"
        )
    optimisation, share = settings.optimisation, settings.data.validation_share
    windows = WindowLatents(level, clips_of_split(level, "train", validation_share=share))
    autoencoder = _loaded(init, windows, settings.model) if init else _fresh(windows, settings)
    trainer = AutoencoderTrainer(
        autoencoder.to(device),
        optimisation,
        loss=settings.loss,
        pinned=_pinned(level, settings),
    )
    if checkpoint.exists():
        trainer.restore(checkpoint)
    batches = WindowBatches(
        windows, settings.variation, batch_size=optimisation.batch_size, seed=optimisation.seed
    )
    run = _Run(trainer, optimisation, out, on_progress=on_progress, report_steps=report_steps)
    run.train(batches)
    trainer.average.copy_to(trainer.autoencoder)
    save_autoencoder(out, trainer.autoencoder)
    # What was saved, whose decoder is rounded to float16; "tiny" alone would name the bundled one.
    held_out = _measure(load_autoencoder(out.absolute()).to(device), level, share)
    _write_measured(out / MEASURED_FILE, trainer.step, windows.num_windows, held_out)
    return TrainedAutoencoder(folder=out, num_windows=windows.num_windows, held_out=held_out)


class _Run:
    """What happens between the steps: metrics, reports, checkpoints."""

    def __init__(
        self,
        trainer: AutoencoderTrainer,
        optimisation: OptimisationSettings,
        out: Path,
        *,
        on_progress: Callable[[RunProgress], None],
        report_steps: int,
    ) -> None:
        self._trainer, self._optimisation = trainer, optimisation
        self._checkpoint, self._metrics = out / CHECKPOINT_FILE, MetricsFile(out / METRICS_FILE)
        self._on_progress, self._report_steps = on_progress, report_steps
        self._rate = StepRate(trainer.step)
        self._recent: list[TrainProgress] = []

    def train(self, batches: WindowBatches) -> None:
        """Trains to the end."""
        self._metrics.forget_after(self._trainer.step)
        self._trainer.train(batches.at, on_step=self._after)

    def _after(self, train: TrainProgress) -> None:
        step, last = train.step, self._optimisation.steps
        self._recent.append(train)
        if is_noted(step, last=last):
            self._metrics.note({"train": asdict(train)})
        if step == last or step % self._report_steps == 0:
            mean, rate = _mean(self._recent), self._rate.at(step)
            self._on_progress(RunProgress(train=mean, steps_per_second=rate))
            self._recent.clear()
        if step == last or step % self._optimisation.checkpoint_steps == 0:
            self._trainer.save(self._checkpoint)


def _pinned(level: CachedLevel, settings: AutoencoderRunSettings) -> dict[str, Any]:
    """What a resumed run must find unchanged, beside how weights are moved."""
    return {
        **{f"cache.{name}": recipe for name, recipe in level.recipes.items()},
        "cache.commit": level.commit,
        **{
            f"{table}.{name}": value
            for table in ("model", "variation", "data")
            for name, value in asdict(getattr(settings, table)).items()
        },
    }


def _fresh(windows: WindowLatents, settings: AutoencoderRunSettings) -> Autoencoder:
    """A linear codec of the windows."""
    some = windows.take(range(0, windows.num_windows, -(-windows.num_windows // _NUM_ANALYSED)))
    _, frames, channels, rows, columns = some.video.shape
    try:
        if rows != columns:
            raise ValueError(f"KL latents of {rows} rows and {columns} columns are not square")
        audio_size = some.audio.shape[-1]
        config = tiny_autoencoder_config(
            frames=frames,
            kl_channels=channels,
            video_size=rows,
            audio_size=audio_size,
            **asdict(settings.model),
        )
    except ValueError as error:
        raise ConfigError(f"no autoencoder for these windows: {error}") from error
    autoencoder = fresh_autoencoder(config, seed=settings.optimisation.seed)
    start_as_linear_codec(
        autoencoder,
        some,
        video_whitening=windows.video_whitening,
        audio_whitening=windows.audio_whitening,
    )
    return autoencoder


def _loaded(folder: str | Path, windows: WindowLatents, settings: ModelSettings) -> Autoencoder:
    """An autoencoder for windows of this shape, of the architecture that is asked for."""
    autoencoder = load_autoencoder(folder)
    config = autoencoder.config.video_encoder
    wanted = (config.frames, config.in_channels, config.in_size, config.in_size)
    found = tuple(windows.take([0]).video.shape[1:])
    if found != wanted:
        raise ConfigError(
            f"{folder}: it was made for windows (frame, channel, row, column) of {wanted}, but the "
            f"cache's are {found}; start from a fresh one"
        )
    found_model = _model_settings(autoencoder)
    if found_model != settings:
        raise ConfigError(
            f"{folder} has {found_model}, but the settings ask for {settings}; leave them as they "
            "are, or start from a fresh one"
        )
    return autoencoder


def _model_settings(autoencoder: Autoencoder) -> ModelSettings:
    decoder = autoencoder.config.signal_decoder
    return ModelSettings(
        decoder_channels=decoder.channels,
        coarse_blocks=decoder.coarse_blocks,
        fine_blocks=decoder.fine_blocks,
    )


def _measure(
    autoencoder: Autoencoder, level: CachedLevel, share: float
) -> ReconstructionError | None:
    clips = clips_of_split(level, "validation", validation_share=share)
    if not clips:
        return None
    return measure_reconstruction(autoencoder, WindowLatents(level, clips))


def _write_measured(
    path: Path, step: int, num_windows: int, held_out: ReconstructionError | None
) -> None:
    record = {
        "steps": step,
        "num_windows_trained_on": num_windows,
        "held_out": held_out.to_record() if held_out else None,
    }
    replace_file(path, (json.dumps(record, indent=2) + "\n").encode())


def _mean(steps: list[TrainProgress]) -> TrainProgress:
    """The last step's, with the errors' means."""
    names = ("video_error", "audio_error", "kl", "grad_norm")
    means = {n: sum(getattr(step, n) for step in steps) / len(steps) for n in names}
    return TrainProgress(step=steps[-1].step, learning_rate=steps[-1].learning_rate, **means)
