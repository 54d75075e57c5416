"""The bundled autoencoder: small, and what moves in scenes it never saw moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from latents.cache.reader import open_cache
from latents.models.autoencoder_files import load_autoencoder
from latents.models.modal_encoder_files import BUNDLED_AUTOENCODER
from training.reconstruction import measure_reconstruction
from training.window_latents import WindowLatents


def test_it_is_small_and_of_the_papers_latent_shapes() -> None:
    autoencoder = load_autoencoder("tiny")

    assert sum(path.stat().st_size for path in BUNDLED_AUTOENCODER.iterdir()) < 8_000_000
    config = autoencoder.config
    assert (config.video_encoder.out_channels, config.audio_encoder.out_channels) == (16, 16)
    assert config.video_encoder.key_frames == tuple(range(16))


@pytest.mark.slow
def test_frames_are_nearer_than_the_mean_frame_of_their_window(unseen_scenes: Path) -> None:
    level = open_cache(unseen_scenes, level="kl")

    error = measure_reconstruction(load_autoencoder("tiny"), WindowLatents(level, level.clips))

    assert error.video_ratio < 0.7
    assert error.audio_error < 0.05
