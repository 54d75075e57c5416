"""Windows of the kl level: scaled means, keyed by seed and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latents.cache.reader import CachedLevel, open_cache
from latents.errors import CacheError
from latents.testing import fake_clips, make_cache
from tests.training.moving_windows import (
    SCALING_FACTOR,
    SHIFT_FACTOR,
    moving_clip,
    moving_level,
    scaled_recipes,
)
from training.window_latents import VariationSettings, WindowBatches, WindowLatents

AS_THEY_ARE = VariationSettings(reversed_share=0, mirrored_share=0)


@pytest.fixture
def level(tmp_path: Path) -> CachedLevel:
    return moving_level(tmp_path)


@pytest.fixture
def windows(level: CachedLevel) -> WindowLatents:
    return WindowLatents(level, level.clips)


def scaled(level: CachedLevel, clip: int, field: str) -> Tensor:
    """What the encoders read of a clip, by the definition."""
    stored = level.read(level.clips[clip], field)[:, :4].astype(np.float32)
    return torch.from_numpy((stored - SHIFT_FACTOR) * SCALING_FACTOR)


def is_part_of(frames: Tensor, clip: Tensor) -> bool:
    return any(torch.equal(frames, clip[start : start + 4]) for start in range(5))


def batches(
    windows: WindowLatents, variation: VariationSettings = AS_THEY_ARE, *, seed: int = 3
) -> WindowBatches:
    return WindowBatches(windows, variation, batch_size=4, seed=seed)


def test_a_window_is_its_frames_beside_its_own_sound(
    level: CachedLevel, windows: WindowLatents
) -> None:
    batch = windows.take([0, 5 + 3])
    assert torch.equal(batch.video[0], scaled(level, 0, "kl.video")[0:4])
    assert torch.equal(batch.audio[0], scaled(level, 0, "kl.audio")[0])
    assert torch.equal(batch.video[1], scaled(level, 1, "kl.video")[3:7])
    assert torch.equal(batch.audio[1], scaled(level, 1, "kl.audio")[3])


def test_all_windows_of_all_clips_are_counted(windows: WindowLatents) -> None:
    assert (windows.num_windows, windows.frames) == (6 * 5, 4)


def test_whitening_is_that_of_the_scaled_means(level: CachedLevel, windows: WindowLatents) -> None:
    frames = torch.cat([scaled(level, clip, "kl.video") for clip in range(6)])
    sounds = torch.cat([scaled(level, clip, "kl.audio") for clip in range(6)])
    for whitening, latents in (
        (windows.video_whitening, frames),
        (windows.audio_whitening, sounds),
    ):
        whitened = whitening.whiten(latents).double()
        # float32 rounding of the sums.
        zeros, ones = torch.zeros(4).double(), torch.ones(4).double()
        torch.testing.assert_close(whitened.mean((0, 2, 3)), zeros, atol=1e-6, rtol=0)
        torch.testing.assert_close(whitened.var((0, 2, 3), correction=0), ones, atol=1e-5, rtol=0)


def test_a_batch_is_a_function_of_seed_and_step(windows: WindowLatents) -> None:
    varied = VariationSettings()
    one, again = batches(windows, varied).at(7), batches(windows, varied).at(7)
    assert torch.equal(one.video, again.video)
    assert torch.equal(one.audio, again.audio)
    assert not torch.equal(one.video, batches(windows, varied).at(8).video)
    assert not torch.equal(one.video, batches(windows, varied, seed=4).at(7).video)


def test_pictures_begin_anywhere_in_the_clip_of_the_sound(
    level: CachedLevel, windows: WindowLatents
) -> None:
    clips = [scaled(level, clip, "kl.video") for clip in range(6)]
    sounds = [scaled(level, clip, "kl.audio") for clip in range(6)]
    batch = batches(windows).at(0)
    for frames, sound in zip(batch.video, batch.audio, strict=True):
        (clip,) = [k for k in range(6) if any(torch.equal(sound, one) for one in sounds[k])]
        assert is_part_of(frames, clips[clip])


def test_an_epoch_hears_every_window_once(level: CachedLevel, windows: WindowLatents) -> None:
    in_threes = WindowBatches(windows, AS_THEY_ARE, batch_size=3, seed=1)
    heard = torch.cat([in_threes.at(step).audio for step in range(10)])
    wanted = torch.cat([scaled(level, clip, "kl.audio") for clip in range(6)])
    assert sorted(heard.flatten(1).tolist()) == sorted(wanted.flatten(1).tolist())


def test_pictures_run_backwards_or_are_mirrored_and_sound_never(windows: WindowLatents) -> None:
    plain = batches(windows).at(2)
    backwards = batches(windows, VariationSettings(reversed_share=1, mirrored_share=0)).at(2)
    mirrored = batches(windows, VariationSettings(reversed_share=0, mirrored_share=1)).at(2)
    assert torch.equal(backwards.video, plain.video.flip(1))
    assert torch.equal(mirrored.video, plain.video.flip(-1))
    assert torch.equal(backwards.audio, plain.audio)
    assert torch.equal(mirrored.audio, plain.audio)


def test_a_recipe_without_a_scaling_factor_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path, clips=[moving_clip(0)], recipes=scaled_recipes(kl_vae={"weights": "x"}))
    level = open_cache(tmp_path, level="kl")
    with pytest.raises(CacheError, match="names no scaling factor"):
        WindowLatents(level, level.clips)


def test_clips_of_different_shapes_are_refused(tmp_path: Path) -> None:
    make_cache(tmp_path, clips=[moving_clip(0), *fake_clips(1)], recipes=scaled_recipes())
    level = open_cache(tmp_path, level="kl")
    with pytest.raises(CacheError, match="but that of clip"):
        WindowLatents(level, level.clips)


def test_no_clips_are_refused(level: CachedLevel) -> None:
    with pytest.raises(CacheError, match="no clips for this split"):
        WindowLatents(level, [])


def test_shares_outside_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mirrored_share is 1\.5"):
        VariationSettings(mirrored_share=1.5)


def test_which_windows_are_varied_changes_from_step_to_step(windows: WindowLatents) -> None:
    plain = batches(windows)
    half = batches(windows, VariationSettings(reversed_share=0.5, mirrored_share=0))
    as_it_was = [torch.equal(plain.at(s).video[0], half.at(s).video[0]) for s in range(16)]
    # All alike by chance: once in 2**15.
    assert set(as_it_was) == {True, False}
