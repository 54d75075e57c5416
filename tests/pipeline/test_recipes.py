"""Which change of settings or encoder makes which fields anew, and which leaves them alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latents.config import load_config
from latents.errors import ConfigError
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae import EncoderIdentity
from pipeline.recipes import (
    Encoders,
    admission_digest,
    require_fitting,
    segmentation_digest,
    wanted_recipes,
)
from pipeline.settings import IngestSettings

KL_VAE = EncoderIdentity(
    config={"latent_channels": 4}, scaling_factor=0.18215, shift_factor=0.0, weights_digest="w"
)
MODAL = ModalIdentity(
    video=ModalEncoderIdentity(config={"frames": 16, "in_size": 32}, weights_digest="v"),
    audio=ModalEncoderIdentity(config={"in_size": 32}, weights_digest="a"),
)
ENCODERS = Encoders(kl_vae=KL_VAE, modal=MODAL)
VIDEO, AUDIO, KL_VIDEO, KL_AUDIO = "clip.video", "clip.audio", "kl.video", "kl.audio"
Z_VIDEO, Z_AUDIO = "perceptual.video", "perceptual.audio"
PICTURES, SOUND = {VIDEO, KL_VIDEO, Z_VIDEO}, {KL_AUDIO, Z_AUDIO}
KL = {KL_VIDEO, KL_AUDIO}
PERCEPTUAL = {Z_VIDEO, Z_AUDIO}
ALL = {VIDEO, AUDIO} | KL | PERCEPTUAL


def settings(*overrides: str) -> IngestSettings:
    return load_config(IngestSettings, kind="ingest", overrides=overrides)


def digests(chosen: IngestSettings, encoders: Encoders = ENCODERS) -> dict[str, str]:
    recipes = wanted_recipes(chosen, encoders, ("clip", "kl", "perceptual"))
    return {name: recipe.digest for name, recipe in recipes.items()}


def changed(chosen: IngestSettings, encoders: Encoders = ENCODERS) -> set[str]:
    before, after = digests(settings()), digests(chosen, encoders)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("override", "fields"),
    [
        ("clip.size=128", PICTURES),
        ("clip.fit=crop", PICTURES),
        ("decode.backend=pyav", PICTURES),
        ("clip.fps=4", ALL),
        ("clip.segment_seconds=20", ALL),
        ("clip.tail_frames=20", ALL),
        ("mel.name=audioldm16k", SOUND),
        ("window.stride=1", SOUND | {Z_VIDEO}),
        ("window.frames=8", SOUND | {Z_VIDEO}),
        ("kl_vae.precision=bf16", KL | PERCEPTUAL),
        ("kl_vae.precision=tf32", KL | PERCEPTUAL),
        ("kl_vae.precision=fp32", set()),
        ("kl_vae.compile=true", KL | PERCEPTUAL),
        ("kl_vae.calibration=a/file.json", set()),
        ("autoencoder.precision=bf16", PERCEPTUAL),
        ("kl_vae.source=elsewhere", set()),
        ("autoencoder.source=elsewhere", set()),
        ("sound.missing=silence", set()),
        ("sound.silent=skip", set()),
        ("run.workers=7", set()),
        ("run.device=cpu", set()),
        ("run.time_limit_seconds=5", set()),
        ("run.shard_bytes=1000", set()),
        ("run.batch_images=3", set()),
    ],
)
def test_a_setting_changes_these_fields_and_no_others(override: str, fields: set[str]) -> None:
    assert changed(settings(override)) == fields


@pytest.mark.parametrize(
    "kl_vae",
    [
        replace(KL_VAE, weights_digest="x"),
        replace(KL_VAE, scaling_factor=0.13025),
        replace(KL_VAE, shift_factor=0.0609),
        replace(KL_VAE, config={"latent_channels": 16}),
    ],
)
def test_another_kl_vae_changes_all_that_is_made_with_it(kl_vae: EncoderIdentity) -> None:
    assert changed(settings(), replace(ENCODERS, kl_vae=kl_vae)) == KL | PERCEPTUAL


@pytest.mark.parametrize("sense", ["video", "audio"])
@pytest.mark.parametrize("other", [{"weights_digest": "x"}, {"config": {"channels": 8}}])
def test_another_modal_encoder_changes_its_own_field_alone(
    sense: str, other: dict[str, Any]
) -> None:
    encoder = replace(getattr(MODAL, sense), **other)
    encoders = replace(ENCODERS, modal=replace(MODAL, **{sense: encoder}))
    assert changed(settings(), encoders) == {f"perceptual.{sense}"}


def kl_vae_table(*overrides: str) -> dict[str, Any]:
    recipe = wanted_recipes(settings(*overrides), ENCODERS, ("kl",))[KL_VIDEO]
    return dict(dict(recipe.specification)["kl_vae"])  # type: ignore[arg-type]  # JSON


@pytest.mark.parametrize(
    ("override", "precision", "is_compiled"),
    [("kl_vae.precision=bf16", "bf16", False), ("kl_vae.compile=true", "fp32", True)],
)
def test_what_is_to_be_calibrated_has_the_bounds_in_its_recipe_and_nothing_measured(
    override: str, precision: str, is_compiled: bool
) -> None:
    table = kl_vae_table(override)
    assert table["precision"] == precision
    assert table["calibrated"] == {"relative_l2": "0.01", "psnr_loss_db": "0.1"}
    assert table.get("compiled", False) == is_compiled


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_what_needs_no_calibration_has_nothing_of_it_in_its_recipe(precision: str) -> None:
    table = kl_vae_table(f"kl_vae.precision={precision}")
    assert table == {**KL_VAE.specification(), "precision": precision}


def test_fields_of_levels_that_are_not_wanted_have_no_recipe() -> None:
    assert set(wanted_recipes(settings(), replace(ENCODERS, modal=None), ("kl",))) == KL


def test_windows_of_pictures_depend_on_where_there_is_sound() -> None:
    recipe = wanted_recipes(settings(), ENCODERS, ("perceptual",))[Z_VIDEO]
    assert [parent.field for parent in recipe.parents] == [AUDIO, KL_VIDEO]


@pytest.mark.parametrize("override", ["window.frames=8", "clip.size=128"])
def test_windows_that_the_modal_encoders_cannot_read_are_refused(override: str) -> None:
    require_fitting(settings(), MODAL)
    with pytest.raises(ConfigError, match="16 frames and KL latents of 32 x 32"):
        require_fitting(settings(override), MODAL)


def test_the_length_of_a_source_in_segments_depends_on_the_cut_alone() -> None:
    same = ("clip.size=128", "mel.name=paper44k", "window.stride=1", "decode.backend=pyav")
    other = ("clip.fps=5", "clip.segment_seconds=5", "clip.tail_frames=10")
    assert {segmentation_digest(settings(o)) for o in same} == {segmentation_digest(settings())}
    assert segmentation_digest(settings()) not in {segmentation_digest(settings(o)) for o in other}


def test_what_decoding_rejected_is_looked_at_again_when_what_it_accepts_changes() -> None:
    again = ("sound.missing=silence", "sound.silent=skip", "window.frames=8", "clip.fps=20")
    assert admission_digest(settings()) not in {admission_digest(settings(o)) for o in again}
    assert admission_digest(settings("mel.name=paper44k")) == admission_digest(settings())
