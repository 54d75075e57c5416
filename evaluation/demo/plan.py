"""What a demo makes and trains: fixed numbers of steps, so that a run taken up again ends alike."""

from __future__ import annotations

from dataclasses import dataclass

from latents.config import load_config
from pipeline.settings import IngestSettings
from training.autoencoder_run import AutoencoderRunSettings
from training.dit.settings import DiTRunSettings

_FROM_SCRATCH_AUTOENCODER = ("optimisation.steps=600", "optimisation.decay_steps=300")


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
                overrides=_FROM_SCRATCH_AUTOENCODER,
            ),
            dit=load_config(DiTRunSettings, kind="dit", presets=["tiny"]),
            init=None,
        )
    presets = ["tiny", "finetune"]
    return Training(
        autoencoder=load_config(AutoencoderRunSettings, kind="autoencoder", presets=presets),
        dit=load_config(DiTRunSettings, kind="dit", presets=presets),
        init="tiny",
    )
