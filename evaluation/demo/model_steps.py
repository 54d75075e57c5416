"""Steps of a demo that train models on its cache.

A model that is trained is kept. One whose training was stopped goes on from its checkpoint, on the
snapshot that it began with, and ends as if it never had been stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.demo.plan import DemoPlan, Training
from evaluation.demo.steps import Steps
from latents.cache.inspect import summarise_level
from latents.cache.layout import CacheLayout
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, move_ref, require_ref
from latents.cache.splits import clips_of_split, share_held_out
from latents.fields import LEVELS, Level
from latents.recipe import sha256_hex
from pipeline.cli_settings import named_encoders
from pipeline.refresh import refresh
from pipeline.run import Engine
from pipeline.settings import AutoencoderSettings
from training.autoencoder_run import MEASURED_FILE, train_autoencoder
from training.cli_autoencoder import AutoencoderReporter
from training.cli_dit import DiTReporter
from training.dit.files import MODEL_FILE, load_dit
from training.dit.run import METRICS_FILE, train_dit
from training.optim import OptimisationSettings

MOST_PASSES = 40
"""Times that a model sees each window, at most."""
_LEVELS: tuple[Level, ...] = ("kl", "perceptual")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolders:
    """Where a demo's models lie."""

    root: Path

    @property
    def autoencoder(self) -> Path:
        """Of the modal encoders and their decoder."""
        return self.root / "autoencoder"

    @property
    def dit(self) -> Path:
        """Of the diffusion transformer."""
        return self.root / "dit"

    @property
    def samples(self) -> Path:
        """Of its samples."""
        return self.root / "samples"


def model_folders(out: Path, layout: CacheLayout, training: Training) -> ModelFolders:
    """One folder for what is learned from and how: no model is half of these and half of those."""
    content = summarise_level(open_cache(layout.url, level="kl")).content_digest
    run = json.dumps({"content": content, **asdict(training)}, sort_keys=True)
    return ModelFolders(root=out / f"{training.name}-{sha256_hex(run.encode())[:8]}")


def train_the_autoencoder(
    folders: ModelFolders, layout: CacheLayout, plan: DemoPlan, *, device: str, steps: Steps
) -> None:
    """``kl`` level -> modal encoders and their decoder."""
    training, settings = plan.training, plan.training.autoencoder
    level = open_cache(layout.url, level="kl", ref=_pinned(layout, folders, "kl"))
    share = share_held_out(level, settings.data.validation_share)
    num_windows = clips_of_split(level, "train", validation_share=share).num_windows
    settings = replace(
        settings,
        optimisation=fitted(settings.optimisation, num_windows),
        data=replace(settings.data, validation_share=share),
    )
    with steps.step(f"{_begun_from(training)} autoencoder -> {folders.autoencoder}"):
        if _measured(folders.autoencoder).get("steps") == settings.optimisation.steps:
            steps.note("trained before; kept")
        else:
            with _threads(training.num_threads):
                train_autoencoder(
                    level,
                    settings,
                    out=folders.autoencoder,
                    resume=True,
                    device=device,
                    init=training.init,
                    on_progress=AutoencoderReporter(settings.optimisation.steps),
                )
        held_out = _measured(folders.autoencoder).get("held_out")
        if held_out:
            steps.note(
                f"of {held_out['num_windows']} held-out windows: error of the frames "
                f"{held_out['video_ratio']:.2f} of the mean frame's, of the sound "
                f"{held_out['audio_error']:.3f} (whitened)"
            )


def make_perceptual_level(
    folders: ModelFolders,
    layout: CacheLayout,
    plan: DemoPlan,
    *,
    device: str,
    open_engine: Callable[[], Engine],
    steps: Steps,
) -> None:
    """``kl`` level -> ``perceptual`` level, by the autoencoder; no video is opened."""
    autoencoder = AutoencoderSettings(source=str(folders.autoencoder))
    settings = replace(plan.ingest, autoencoder=autoencoder)
    with steps.step(f"encode the kl level again, to latents of {folders.autoencoder}"):
        result = refresh(
            None,
            layout=layout,
            settings=settings,
            encoders=named_encoders(settings, _LEVELS),
            levels=_LEVELS,
            engine=open_engine(),
            device=device,
        )
        steps.note(
            f"{result.num_clips_encoded} clips encoded, {result.num_already_present} of "
            f"{result.num_sources} sources were there already; {result.num_videos_opened} videos "
            "opened"
        )


def train_the_dit(
    folders: ModelFolders, layout: CacheLayout, plan: DemoPlan, *, device: str, steps: Steps
) -> None:
    """``perceptual`` level -> DiT."""
    training, settings = plan.training, plan.training.dit
    ref = _pinned(layout, folders, "perceptual")
    level = open_cache(layout.url, level="perceptual", ref=ref)
    share = share_held_out(level, settings.data.validation_share)
    num_windows = clips_of_split(level, "train", validation_share=share).num_windows
    settings = replace(
        settings,
        optimisation=fitted(settings.optimisation, num_windows),
        data=replace(settings.data, validation_share=share),
    )
    with steps.step(f"{_begun_from(training)} DiT -> {folders.dit}"):
        if _is_trained(folders.dit, settings.optimisation.steps):
            steps.note("trained before; kept")
            return
        with _threads(training.num_threads):
            train_dit(
                layout.url,
                settings,
                out=folders.dit,
                ref=ref,
                resume=True,
                device=device,
                init=training.init,
                on_progress=DiTReporter(settings.optimisation.steps),
            )
        steps.note(_losses(folders.dit))


def fitted(settings: OptimisationSettings, num_windows: int) -> OptimisationSettings:
    """The same, but for fewer steps where there are few windows: they would be learned by heart."""
    steps = max(1, min(settings.steps, MOST_PASSES * num_windows // settings.batch_size))
    part = steps / settings.steps
    return replace(
        settings,
        steps=steps,
        warmup_steps=int(part * settings.warmup_steps),
        decay_steps=int(part * settings.decay_steps),
    )


def _begun_from(training: Training) -> str:
    return (
        f"fine-tune the bundled {training.init}" if training.init else "train from nothing: a tiny"
    )


def _pinned(layout: CacheLayout, folders: ModelFolders, level: Level) -> str:
    """A ref that keeps naming the snapshot which the first run saw."""
    name = f"{folders.root.name}-{level}"
    current = require_ref(layout, "current")
    recipes = {field: current.recipes[field] for field in LEVELS[level]}
    pinned = Ref(commit=current.commit, recipes=recipes)
    move_ref(layout, name, lambda there: None if there else pinned)
    return name


def _measured(folder: Path) -> dict[str, Any]:
    """What is on record of a trained autoencoder; it is written last."""
    try:
        found: dict[str, Any] = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _is_trained(folder: Path, num_steps: int) -> bool:
    return (folder / MODEL_FILE).exists() and load_dit(folder).steps == num_steps


def _losses(folder: Path) -> str:
    """Of held-out sources, at the end of training."""
    last = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()[-1])
    losses = last.get("validation", {}).get("losses")
    if not losses:
        return "no source was held out to measure it on"
    cases = (f"{case} {loss['video']:.3f}/{loss['audio']:.3f}" for case, loss in losses.items())
    return f"held-out losses, video/audio: {', '.join(cases)}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
