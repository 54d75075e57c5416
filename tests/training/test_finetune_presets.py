"""The presets that go on from a trained model change how long and how fast, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from latents.config import load_config
from latents.errors import ConfigError
from training.autoencoder_run import AutoencoderRunSettings
from training.dit.settings import DiTRunSettings


@pytest.mark.parametrize(
    ("kind", "settings"), [("autoencoder", AutoencoderRunSettings), ("dit", DiTRunSettings)]
)
class TestFinetune:
    def test_it_is_shorter_and_slower_than_what_it_follows(
        self, kind: str, settings: type[Any]
    ) -> None:
        tiny = load_config(settings, kind=kind, presets=["tiny"])
        tuned = load_config(settings, kind=kind, presets=["tiny", "finetune"])

        assert tuned.optimisation.steps < tiny.optimisation.steps
        assert tuned.optimisation.learning_rate < tiny.optimisation.learning_rate
        assert tuned.optimisation.batch_size == tiny.optimisation.batch_size
        assert tuned.model == tiny.model
        assert tuned.data == tiny.data

    def test_it_is_no_preset_of_its_own(self, kind: str, settings: type[Any]) -> None:
        with pytest.raises(ConfigError, match="is missing; name a preset that sets it"):
            load_config(settings, kind=kind, presets=["finetune"])
