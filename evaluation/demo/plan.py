"""What a demo makes and trains: fixed numbers of steps, so that a run taken up again ends alike."""

from __future__ import annotations

from dataclasses import dataclass

from latents.config import load_config
from pipeline.settings import IngestSettings
from training.autoencoder_run import AutoencoderRunSettings
from training.dit.settings import DiTRunSettings

_HELD_OUT = ("data.validation_share=0.2",)
"""Twice as many as usual: few scenes are held out, and figures of five are chance."""
_MEASURED_WELL = ("validation.num_windows=128", "validation.draws=8", "validation.every_steps=150")
_FROM_SCRATCH_AUTOENCODER = ("optimisation.steps=400", "optimisation.decay_steps=200")


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the models are trained, and what they start from."""

    autoencoder: AutoencoderRunSettings
    dit: DiTRunSettings
    init: str | None
    """Name of the bundled models that both start from; None: from nothing."""
    num_threads: int = 1
    """Of the CPU. Fixed, as another number gives other last bits, and other latents; and one, as
    more of them wait for each other where the machine is busy."""

    @property
    def name(self) -> str:
        """Tells the folders of runs apart."""
        return "models" if self.init else "models-from-scratch"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """All that a demo is told, but for its sources."""

    ingest: IngestSettings
    training: Training
    num_clips: int = 48
    """Scenes to make."""
    seconds: int = 4
    """Length of a scene."""
    num_samples: int = 4
    """Of each task."""
    num_reported: int = 8
    """Clips shown in the report."""


def demo_training(*, from_scratch: bool) -> Training:
    """The bundled models fine-tuned, or small ones trained from nothing in about the same time."""
    if from_scratch:
        return Training(
            autoencoder=load_config(
                AutoencoderRunSettings,
                kind="autoencoder",
                presets=["tiny"],
                overrides=[*_FROM_SCRATCH_AUTOENCODER, *_HELD_OUT],
            ),
            dit=load_config(
                DiTRunSettings,
                kind="dit",
                presets=["tiny"],
                overrides=[*_HELD_OUT, *_MEASURED_WELL],
            ),
            init=None,
        )
    presets = ["tiny", "finetune"]
    return Training(
        autoencoder=load_config(
            AutoencoderRunSettings, kind="autoencoder", presets=presets, overrides=_HELD_OUT
        ),
        dit=load_config(
            DiTRunSettings,
            kind="dit",
            presets=presets,
            overrides=[*_HELD_OUT, *_MEASURED_WELL],
        ),
        init="tiny",
    )
