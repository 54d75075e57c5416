"""Models that belong to a DiT's latents, and those that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.sampling.models import ModelSources, load_window_decoder, model_digests
from latents.errors import ModelError
from latents.models.kl_vae_files import load_autoencoder as load_diffusers_autoencoder
from latents.models.kl_vae_files import save_autoencoder as save_diffusers_autoencoder
from latents.recipe import Recipe
from pipeline.recorded import recorded_encoding
from tests.evaluation.sampling.small_models import SmallModels, make_autoencoder
from training.dit.files import BUNDLED_DIT

LATENT = torch.randn(16, 2, 2, generator=torch.Generator().manual_seed(0))


def frames_of(models: SmallModels, sources: ModelSources) -> NDArray[np.uint8]:
    return models.decoder_of(sources).frames(LATENT)


def test_a_foreign_kl_vae_is_refused(models: SmallModels, other_kl_vae: Path) -> None:
    with pytest.raises(ModelError, match=r"encoder of this KL-VAE has weights .* --kl-vae"):
        models.decoder_of(replace(models.sources, kl_vae=str(other_kl_vae)))


def test_foreign_encoders_are_refused(models: SmallModels, tmp_path: Path) -> None:
    foreign = make_autoencoder(tmp_path / "foreign", encoder_seed=1)

    with pytest.raises(ModelError, match="video encoder of this autoencoder has weights"):
        models.decoder_of(replace(models.sources, autoencoder=str(foreign)))


def test_a_fine_tuned_signal_decoder_is_accepted(models: SmallModels, tmp_path: Path) -> None:
    tuned = replace(
        models.sources, autoencoder=str(make_autoencoder(tmp_path / "tuned", decoder_seed=1))
    )

    assert not np.array_equal(frames_of(models, tuned), frames_of(models, models.sources))


def test_a_fine_tuned_kl_vae_decoder_is_accepted(models: SmallModels, tmp_path: Path) -> None:
    kl_vae = load_diffusers_autoencoder(models.sources.kl_vae)
    with torch.no_grad():
        kl_vae.decoder.conv_out.weight.mul_(2)
    save_diffusers_autoencoder(kl_vae, tmp_path / "tuned")
    tuned = replace(models.sources, kl_vae=str(tmp_path / "tuned"))

    assert not np.array_equal(frames_of(models, tuned), frames_of(models, models.sources))


def test_latents_of_another_width_are_refused(models: SmallModels) -> None:
    config = replace(models.trained.model.config, latent_channels=8)

    with pytest.raises(ModelError, match=r"reads latents of 16 channels .* have 8 and 4"):
        load_window_decoder(config, models.encoding, models.sources, device="cpu")


def test_recipes_that_say_something_else_are_refused(models: SmallModels) -> None:
    recipes = dict(models.trained.trained_on.recipes)
    video = recipes["perceptual.video"]
    recipes["perceptual.video"] = Recipe(
        field=video.field, implementation=1, specification={}, parents=video.parents
    )

    with pytest.raises(ModelError, match=r"D: the recipes of the latents .* not understand"):
        recorded_encoding(recipes, model="D")


def test_the_bundled_dit_has_a_digest_of_its_own(models: SmallModels) -> None:
    bundled = model_digests("tiny", models.sources)

    assert bundled == model_digests(BUNDLED_DIT, models.sources)
    assert bundled["dit"] != model_digests(models.dit, models.sources)["dit"]


def test_digests_tell_models_apart(models: SmallModels, tmp_path: Path) -> None:
    tuned = make_autoencoder(tmp_path / "tuned", decoder_seed=1)

    plain = model_digests(models.dit, models.sources)
    other = model_digests(models.dit, replace(models.sources, autoencoder=str(tuned)))

    assert plain["vocoder"] == "griffin-lim"
    assert {name for name in plain if plain[name] != other[name]} == {"autoencoder"}
