"""The encoder without weights goes through every way that latents are made and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latents.cache.reader import CachedLevel, read_tensor
from latents.cache.snapshot import load_snapshot
from latents.errors import ModelError
from pipeline.deep_verify import deep_verify, deep_verify_stage, lenient
from pipeline.originals import SourceClips
from pipeline.recipes import kl_recipes
from pipeline.settings import IngestSettings
from tests.pipeline.small_jobs import SmallCache, SmallJob

JOB = SmallJob(kl_vae=Path("identity"), levels=("clip", "kl"))
SCENES = "scenes:0:2:2"


@pytest.fixture
def identity_cache(tmp_path: Path, decode_in_process: None) -> SmallCache:
    cache = SmallCache(tmp_path)
    cache.ingest(JOB, SCENES)
    return cache


def tensors(cache: SmallCache, level: CachedLevel, field: str) -> list[NDArray[Any]]:
    return [read_tensor(cache.layout, clip.rows[field]) for clip in level]


def test_stored_means_are_pooled_frames(identity_cache: SmallCache) -> None:
    frames = tensors(identity_cache, identity_cache.level("clip"), "clip.video")
    moments = tensors(identity_cache, identity_cache.level("kl"), "kl.video")
    assert len(moments) == 2
    for video, latents in zip(frames, moments, strict=True):
        pooled = video.reshape(len(video), 3, 4, 8, 4, 8).mean(axis=(3, 5)) / 127.5 - 1
        assert latents.shape == (len(video), 8, 4, 4)
        assert latents.dtype == np.float16
        np.testing.assert_allclose(latents[:, :3], pooled, atol=5e-4)  # float16 below 1
        assert np.unique(latents[:, 4:]).tolist() == [-30.0]


def test_clips_made_again_agree_to_the_last_bit(identity_cache: SmallCache) -> None:
    layout, settings = identity_cache.layout, JOB.settings
    current = identity_cache.ref("current")
    clips = SourceClips(load_snapshot(layout, current.commit), lenient(settings))
    stage = deep_verify_stage(
        settings, JOB.encoders, fields=current.recipes, device="cpu", cache=layout
    )
    found = deep_verify(layout, clips, stage, num_clips=2)
    clips.close()
    assert [(one.problem, one.distance) for one in found] == [(None, 0.0)] * 8


def test_other_windows_are_made_from_the_sound_at_hand(identity_cache: SmallCache) -> None:
    wider = SmallJob(kl_vae=JOB.kl_vae, levels=JOB.levels, overrides=("window.stride=2",))
    done = identity_cache.refresh(wider)
    assert done.made == {"kl.audio": 2}
    assert done.result.num_videos_opened == 0


def test_another_encoder_is_not_taken_for_it(identity_cache: SmallCache) -> None:
    settings = SmallJob(kl_vae=Path("tiny")).settings
    with pytest.raises(ModelError, match="tiny: these weights"):
        deep_verify_stage(
            settings,
            JOB.encoders,
            fields=("kl.video",),
            device="cpu",
            cache=identity_cache.layout,
        )


def test_its_recipe_keeps_its_digest() -> None:
    recipes = kl_recipes(IngestSettings(), JOB.encoders.kl_vae)
    table = dict(recipes["kl.video"].specification)["kl_vae"]
    assert table == {
        "architecture": {
            "name": "average of 8 x 8 pixels",
            "latent_channels": 4,
            "channels": ["red", "green", "blue", "luma"],
        },
        "scaling_factor": "1.0",
        "shift_factor": "0.0",
        "weights": "3ff4f457ebbf6a18401df24fb34ebf751e0d35c6d67b9f48f18f766e836cee21",
        "precision": "fp32",
    }
