"""Windows of a cache to go by."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.sampling.cached_windows import windows_of_cache
from evaluation.sampling.conditions import GivingTask
from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.reader import CachedClip, CachedLevel, open_cache
from latents.cache.refs import Ref, require_ref, write_ref
from latents.errors import ConfigError, StaleFieldError
from latents.fields import LEVELS
from latents.posterior import posterior_mode
from tests.evaluation.sampling.conftest import make_video
from tests.evaluation.sampling.small_models import FRAMES, SmallModels, make_autoencoder
from tests.pipeline.small_jobs import SmallCache


@pytest.fixture(scope="module")
def clip(level: CachedLevel) -> CachedClip:
    """The video: 10 frames, of which a window begins at every second one."""
    return next(clip for clip in level.clips if clip.num_windows == 4)


def means(level: CachedLevel, clip: CachedClip, field: str, start: int, stop: int) -> torch.Tensor:
    return posterior_mode(torch.from_numpy(level.read(clip, field, start, stop)))


@pytest.mark.parametrize(("suffix", "window"), [("", 0), (":0", 0), (":2", 2)])
@pytest.mark.parametrize("task", ["a2v", "v2a"])
def test_a_cache_gives_any_window(
    task: GivingTask,
    suffix: str,
    window: int,
    models: SmallModels,
    level: CachedLevel,
    clip: CachedClip,
) -> None:
    (given,) = windows_of_cache(
        level.layout.url, [f"{clip.clip}{suffix}"], task, trained=models.trained
    )

    sense, other = ("audio", "video") if task == "a2v" else ("video", "audio")
    own = means(level, clip, f"perceptual.{sense}", window, window + 1)
    assert torch.equal(getattr(given.latents, sense), own)
    assert not getattr(given.latents, other).any()
    assert (given.frames, given.sound) == (None, None)
    assert given.digest == f"cached {clip.clip}:{window}"


def test_it_is_shown_by_the_kl_level(
    models: SmallModels, level: CachedLevel, clip: CachedClip
) -> None:
    url, name = level.layout.url, f"{clip.clip}:3"
    kl = open_cache(url, level="kl")
    found = kl.clips.find(clip.clip)
    assert found is not None

    (pictures,) = windows_of_cache(url, [name], "v2a", trained=models.trained)
    (sound,) = windows_of_cache(url, [name], "a2v", trained=models.trained)

    assert pictures.kl_means is not None
    assert sound.kl_means is not None
    assert torch.equal(pictures.kl_means, means(kl, found, "kl.video", 6, 6 + FRAMES))
    assert torch.equal(sound.kl_means, means(kl, found, "kl.audio", 3, 4))


def test_without_a_kl_level_there_are_the_latents_alone(
    models: SmallModels, level: CachedLevel, clip: CachedClip, tmp_path: Path
) -> None:
    layout = CacheLayout(LocalStorage(Path(shutil.copytree(level.layout.url, tmp_path / "cache"))))
    ref = require_ref(layout, "current")
    alone = {field: ref.recipes[field] for field in LEVELS["perceptual"]}
    write_ref(layout, "current", Ref(commit=ref.commit, recipes=alone))

    (given,) = windows_of_cache(layout.url, [clip.clip], "v2a", trained=models.trained)

    assert given.kl_means is None


def test_clips_and_windows_that_are_not_there_are_refused(
    models: SmallModels, level: CachedLevel, clip: CachedClip
) -> None:
    url, trained = level.layout.url, models.trained

    with pytest.raises(ConfigError, match="there is no clip 'nothing'"):
        windows_of_cache(url, ["nothing"], "v2a", trained=trained)
    for window in ("99", "-1", "x", "1:2", "9" * 5000):
        with pytest.raises(ConfigError, match=r"there is no window .* has windows 0 \.\.\. 3"):
            windows_of_cache(url, [f"{clip.clip}:{window}"], "v2a", trained=trained)


def test_a_silent_clip_is_refused_for_a2v(models: SmallModels, tmp_path: Path) -> None:
    make_video(tmp_path / "silent.mp4", np.zeros((1, 44100), np.float32))
    cache = SmallCache(tmp_path / "cache")
    cache.run(models.job, str(tmp_path / "silent.mp4"))
    clip = cache.level().clips[0].clip

    with pytest.raises(ConfigError, match="-120 dBFS, under the -80 that count as silence"):
        windows_of_cache(cache.layout.url, [clip], "a2v", trained=models.trained)


def test_a_cache_of_other_encoders_is_refused(models: SmallModels, tmp_path: Path) -> None:
    other = make_autoencoder(tmp_path / "other", encoder_seed=1)
    cache = SmallCache(tmp_path / "cache")
    cache.run(replace(models.job, autoencoder=other), "scenes:0:1:1")
    clip = cache.level().clips[0].clip

    with pytest.raises(StaleFieldError):
        windows_of_cache(cache.layout.url, [clip], "v2a", trained=models.trained)
