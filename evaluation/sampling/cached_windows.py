"""Windows of a cache to go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evaluation.sampling.conditions import (
    GIVEN_FIELDS,
    GivenWindow,
    GivingTask,
    given_latents,
    require_sound,
)
from latents.cache.layout import find_cache
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.refs import require_ref
from latents.cache.rows import LatentRow
from latents.errors import ConfigError
from latents.fields import LEVELS
from latents.posterior import posterior_mode
from latents.recipe import Recipe
from training.dit.config import DiTConfig
from training.dit.files import TrainedDiT


def windows_of_cache(
    cache: str, clips: Sequence[str], task: GivingTask, *, trained: TrainedDiT
) -> list[GivenWindow]:
    """Windows that a cache holds.

    Args:
        cache: A folder or URL.
        clips: ``KEY`` or ``KEY:WINDOW``; without a number the clip's first window.
        task: Says what is read of it.
        trained: The DiT that is to go by it.

    Raises:
        CacheError: There is no such cache or level, or it is damaged.
        StaleFieldError: Its latents are others than those the DiT was trained on.
        ConfigError: There is no such clip or window, or it is silent where sound is given.
    """
    recipes, config = trained.trained_on.recipes, trained.model.config
    level = open_cache(cache, level="perceptual", recipes=recipes)
    kl = _kl_level(cache, recipes)
    return [_window(level, kl, clip, task, config) for clip in clips]


def _kl_level(cache: str, recipes: Mapping[str, Recipe]) -> CachedLevel | None:
    """The level that the latents were made from; None where the cache does not keep it."""
    above = {parent.field: parent for recipe in recipes.values() for parent in recipe.parents}
    wanted = {field: above[field] for field in LEVELS["kl"]}
    kept = require_ref(find_cache(cache), "current").recipes
    if any(kept.get(field) != recipe.digest for field, recipe in wanted.items()):
        return None
    return open_cache(cache, level="kl", recipes=wanted)


def _window(
    level: CachedLevel, kl: CachedLevel | None, clip: str, task: GivingTask, config: DiTConfig
) -> GivenWindow:
    key, _, number = clip.partition(":")
    found = level.clips.find(key)
    if found is None:
        raise ConfigError(
            f"{level.layout.url}: there is no clip {key[:100]!r} at the perceptual level; `mmldm "
            "cache ls --level perceptual` shows those that there are"
        )
    if (number or "0") not in map(str, range(found.num_windows)):
        raise ConfigError(
            f"{clip[:100]}: there is no window {number[:20]!r}; the clip has windows 0 ... "
            f"{found.num_windows - 1}"
        )
    window, row = int(number or 0), found.rows[GIVEN_FIELDS[task]]
    if task == "a2v" and row.loudness_dbfs is not None:
        require_sound(clip, row.loudness_dbfs)
    return GivenWindow(
        name=clip,
        digest=f"cached {key}:{window}",
        latents=given_latents(task, level.read(found, row.field, window, window + 1), config),
        kl_means=None if kl is None else _kl_means(kl, row, task, window),
    )


def _kl_means(kl: CachedLevel, row: LatentRow, task: GivingTask, window: int) -> Tensor | None:
    """Of the frames of a window, or of its mel image; None where the clip is not at that level."""
    clip = kl.clips.find(row.clip)
    if clip is None:
        return None
    if task == "a2v":
        moments = kl.read(clip, "kl.audio", window, window + 1)
    else:
        assert row.window_first_frame is not None
        assert row.window_stride is not None
        assert row.window_frames is not None
        start = row.window_first_frame + window * row.window_stride
        moments = kl.read(clip, "kl.video", start, start + row.window_frames)
    return posterior_mode(torch.from_numpy(moments))
