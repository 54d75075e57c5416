"""The bundled DiT: small, of the bundled autoencoder, and sound and pictures tell of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmldm
from latents.cache.reader import open_cache
from latents.config import load_config
from latents.errors import StaleFieldError
from latents.testing import make_cache, perceptual_clips, perceptual_recipes
from pipeline.cli_settings import named_encoders
from pipeline.recipes import perceptual_recipes as recipes_of
from pipeline.settings import IngestSettings
from training.dit.files import BUNDLED_DIT, load_dit
from training.dit.measure import measure_dit
from training.dit.settings import ValidationSettings


@pytest.fixture(scope="module")
def foreign_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Latents of its shape that are not its own."""
    clips = perceptual_clips(4, video=(16, 16, 16), audio=(16, 8, 8))
    root = tmp_path_factory.mktemp("foreign")
    return make_cache(root, clips=clips, recipes=perceptual_recipes()).url


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_DIT.iterdir()) < 4_000_000
    assert load_dit("tiny").model.config.depth == 4


def test_its_latents_are_those_of_the_bundled_models() -> None:
    settings = load_config(
        IngestSettings, kind="ingest", overrides=["autoencoder.source=tiny", "run.device=cpu"]
    )
    wanted = recipes_of(settings, named_encoders(settings, ("kl", "perceptual")))

    found = load_dit("tiny").trained_on.recipes

    assert {field: recipe.digest for field, recipe in found.items()} == {
        field: recipe.digest for field, recipe in wanted.items()
    }


def test_a_run_may_start_from_it(foreign_cache: str, tmp_path: Path) -> None:
    presets = ["--preset", "tiny", "--preset", "finetune"]
    hardly = ["steps=1", "warmup_steps=0", "decay_steps=0", "learning_rate=1e-9", "batch_size=1"]
    overrides = [f"--set={one}" for one in (*hardly, "data.validation_share=0")]
    run = ["train", "dit", "--cache", foreign_cache, "--out", str(tmp_path), "--device", "cpu"]

    assert mmldm.main([*run, *presets, *overrides, "--init", "tiny"]) == 0

    found, wanted = (load_dit(dit).model.state_dict() for dit in (tmp_path, "tiny"))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)


def test_it_is_not_measured_on_latents_of_other_recipes(foreign_cache: str) -> None:
    level = open_cache(foreign_cache, level="perceptual")

    with pytest.raises(StaleFieldError, match=r"perceptual.video was made by recipe"):
        measure_dit(load_dit("tiny"), level, ValidationSettings())


@pytest.mark.slow
def test_it_denoises_scenes_it_never_saw_and_one_sense_helps_the_other(unseen_scenes: Path) -> None:
    level = open_cache(unseen_scenes, level="perceptual")
    settings = ValidationSettings(num_windows=level.num_windows, draws=4, batch_size=16)

    losses = measure_dit(load_dit("tiny"), level, settings).losses

    assert losses["svg"].video < losses["linear"].video
    assert losses["svg"].audio < losses["linear"].audio
    assert losses["a2v"].video < losses["svg"].video
    assert losses["v2a"].audio < losses["svg"].audio
    assert losses["a2v"].video < losses["a2v shuffled"].video
    assert losses["v2a"].audio < losses["v2a shuffled"].audio
