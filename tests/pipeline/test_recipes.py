"""Which change of settings or encoder makes which fields anew, and which leaves them alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latents.config import load_config
from latents.models.kl_vae import EncoderIdentity
from pipeline.recipes import admission_digest, segmentation_digest, wanted_recipes
from pipeline.settings import IngestSettings

ENCODER = EncoderIdentity(
    config={"latent_channels": 4}, scaling_factor=0.18215, shift_factor=0.0, weights_digest="w"
)
VIDEO, AUDIO, KL_VIDEO, KL_AUDIO = "clip.video", "clip.audio", "kl.video", "kl.audio"
ALL = {VIDEO, AUDIO, KL_VIDEO, KL_AUDIO}


def settings(*overrides: str) -> IngestSettings:
    return load_config(IngestSettings, kind="ingest", overrides=overrides)


def digests(chosen: IngestSettings, encoder: EncoderIdentity = ENCODER) -> dict[str, str]:
    recipes = wanted_recipes(chosen, encoder, ("clip", "kl"))
    return {name: recipe.digest for name, recipe in recipes.items()}


def changed(chosen: IngestSettings, encoder: EncoderIdentity = ENCODER) -> set[str]:
    before, after = digests(settings()), digests(chosen, encoder)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("override", "fields"),
    [
        ("clip.size=128", {VIDEO, KL_VIDEO}),
        ("clip.fit=crop", {VIDEO, KL_VIDEO}),
        ("decode.backend=pyav", {VIDEO, KL_VIDEO}),
        ("clip.fps=4", ALL),
        ("clip.segment_seconds=20", ALL),
        ("clip.tail_frames=20", ALL),
        ("mel.name=audioldm16k", {KL_AUDIO}),
        ("window.stride=1", {KL_AUDIO}),
        ("window.frames=8", {KL_AUDIO}),
        ("kl_vae.precision=bf16", {KL_VIDEO, KL_AUDIO}),
        ("kl_vae.source=elsewhere", set()),
        ("sound.missing=silence", set()),
        ("sound.silent=skip", set()),
        ("run.workers=7", set()),
        ("run.device=cpu", set()),
        ("run.time_limit_seconds=5", set()),
        ("run.shard_bytes=1000", set()),
    ],
)
def test_a_setting_changes_these_fields_and_no_others(override: str, fields: set[str]) -> None:
    assert changed(settings(override)) == fields


@pytest.mark.parametrize(
    "encoder",
    [
        replace(ENCODER, weights_digest="x"),
        replace(ENCODER, scaling_factor=0.13025),
        replace(ENCODER, shift_factor=0.0609),
        replace(ENCODER, config={"latent_channels": 16}),
    ],
)
def test_another_encoder_changes_the_kl_level_alone(encoder: EncoderIdentity) -> None:
    assert changed(settings(), encoder) == {KL_VIDEO, KL_AUDIO}


def test_the_length_of_a_source_in_segments_depends_on_the_cut_alone() -> None:
    same = ("clip.size=128", "mel.name=paper44k", "window.stride=1", "decode.backend=pyav")
    other = ("clip.fps=5", "clip.segment_seconds=5", "clip.tail_frames=10")
    assert {segmentation_digest(settings(o)) for o in same} == {segmentation_digest(settings())}
    assert segmentation_digest(settings()) not in {segmentation_digest(settings(o)) for o in other}


def test_what_decoding_rejected_is_looked_at_again_when_what_it_accepts_changes() -> None:
    again = ("sound.missing=silence", "sound.silent=skip", "window.frames=8", "clip.fps=20")
    assert admission_digest(settings()) not in {admission_digest(settings(o)) for o in again}
    assert admission_digest(settings("mel.name=paper44k")) == admission_digest(settings())
