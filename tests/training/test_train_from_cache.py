"""Training a KL-VAE from a cache's clip level."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmldm
from latents.cache.reader import CachedLevel, open_cache
from latents.errors import ConfigError
from latents.models.kl_vae import load_kl_vae
from training.clip_pictures import ClipPictures, PictureSettings

QUICK = ("--set", "steps=4", "--set", "warmup_steps=1", "--set", "decay_steps=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips") / "cache"
    small = ("--set", "clip.size=64", "--set", "clip.fps=10")
    assert (
        mmldm.main(["ingest", "scenes:5:3:2", "--cache", str(root), "--levels", "clip", *small])
        == 0
    )
    return root


@pytest.fixture
def level(cache: Path) -> CachedLevel:
    return open_cache(cache, level="clip")


def pictures(level: CachedLevel, *, crop: int = 64, audio_share: float = 0.25) -> ClipPictures:
    settings = PictureSettings(audio_share=audio_share)
    return ClipPictures(level, settings, batch_size=8, crop=crop, seed=3)


def test_a_batch_is_a_function_of_seed_and_step(level: CachedLevel) -> None:
    stream = pictures(level).open(5)
    torch.testing.assert_close(next(stream), pictures(level).batch(5), rtol=0, atol=0)
    torch.testing.assert_close(next(stream), pictures(level).batch(6), rtol=0, atol=0)
    assert not torch.equal(pictures(level).batch(5), pictures(level).batch(6))


def test_frames_are_those_of_the_cache(level: CachedLevel) -> None:
    batch = pictures(level, audio_share=0.0).batch(0)
    held = np.concatenate([level.read(clip, "clip.video") for clip in level])
    assert all((held == picture.numpy()).all(axis=(1, 2, 3)).any() for picture in batch)


def test_the_audio_share_of_a_batch_is_grey_mel_images(level: CachedLevel) -> None:
    batch = pictures(level, audio_share=0.5).batch(0)
    is_grey = [bool((one[0] == one[1]).all() and (one[1] == one[2]).all()) for one in batch]
    assert is_grey == [True] * 4 + [False] * 4


def test_a_crop_larger_than_the_frames_is_refused(level: CachedLevel) -> None:
    with pytest.raises(ConfigError, match=r"optimisation\.crop is 128, .*64x64"):
        pictures(level, crop=128, audio_share=0.0).batch(0)


def test_a_trained_kl_vae_is_a_folder_that_encodes(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "v"
    arguments = ["train", "kl-vae", "--cache", str(cache), "--out", str(out), "--preset", "tiny"]
    assert mmldm.main([*arguments, *QUICK]) == 0
    config = json.loads((out / "config.json").read_text())
    trained = load_kl_vae(str(out))
    assert trained.scaling_factor == config["scaling_factor"] > 0
    assert trained.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 8, 8, 8)
    assert trained.identity.weights_digest != load_kl_vae("tiny").identity.weights_digest


def test_a_cache_without_a_clip_level_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "c")
    assert mmldm.main(["ingest", "scenes:5:1:2", "--cache", root, "--set", "clip.size=64"]) == 0
    assert mmldm.main(["train", "kl-vae", "--cache", root, "--out", str(tmp_path / "v")]) == 1
    assert "has no clip.video or clip.audio" in capsys.readouterr().err
