"""Batches are the cache's latents, whitened, and drawn by key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.dit.small_runs import all_batches, small_cache

WINDOWS = np.arange(40)
KEYS = [(0, int(window)) for window in WINDOWS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("cache"))


def test_whitened_windows_have_mean_0_and_variance_1_per_channel(cache: str) -> None:
    latents = all_batches(cache).of(WINDOWS, keys=KEYS)
    for tensor in (latents.video, latents.audio):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            tensor.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0
        )


def test_whitening_is_undone(cache: str) -> None:
    batches = all_batches(cache)
    stored = batches.windows.take(WINDOWS)["perceptual.video"][:, :2]
    back = batches.whitening.unwhiten(batches.of(WINDOWS, keys=KEYS))
    np.testing.assert_allclose(back.video.numpy(), stored, atol=1e-5)


def test_draws_are_keyed_and_the_same_at_any_batch_size(cache: str) -> None:
    batches = all_batches(cache, draw="sample")
    whole = batches.of(WINDOWS, keys=KEYS).video
    halves = [
        batches.of(WINDOWS[half], keys=KEYS[half]).video for half in (slice(20), slice(20, 40))
    ]
    assert torch.equal(whole, torch.cat(halves))
    another_epoch = batches.of(WINDOWS, keys=[(1, window) for _, window in KEYS]).video
    assert not torch.equal(whole, another_epoch)


def test_draws_have_the_posteriors_spread(cache: str) -> None:
    mode = all_batches(cache).of(WINDOWS, keys=KEYS).video
    draw = all_batches(cache, draw="sample").of(WINDOWS, keys=KEYS).video
    scale = torch.tensor(all_batches(cache).whitening.video.scale)
    spread = ((draw - mode).square().mean((0, 2, 3)).sqrt() * scale).numpy()
    np.testing.assert_allclose(spread, np.exp(-5), rtol=0.1)
