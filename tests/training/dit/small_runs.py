"""Small caches of perceptual latents."""

from __future__ import annotations

from pathlib import Path

from latents.cache.reader import open_cache
from latents.cache.resident import ResidentWindows
from latents.posterior import Draw
from latents.testing import make_cache, perceptual_clips, perceptual_recipes
from latents.whitening import whitening_of
from training.dit.batches import AUDIO, VIDEO, PairWhitening, WindowBatches


def small_cache(root: Path, *, num_clips: int = 8, seed: int = 0) -> str:
    """A cache of the perceptual level; its URL."""
    clips = perceptual_clips(num_clips, seed=seed)
    return make_cache(root, clips=clips, recipes=perceptual_recipes()).url


def all_batches(cache: str, *, draw: Draw = "mode") -> WindowBatches:
    """All windows of a cache, whitened by all of them."""
    level = open_cache(cache, level="perceptual")
    whitening = PairWhitening(
        video=whitening_of(clip.rows[VIDEO] for clip in level.clips),
        audio=whitening_of(clip.rows[AUDIO] for clip in level.clips),
    )
    windows = ResidentWindows(level, level.clips)
    return WindowBatches(windows=windows, whitening=whitening, draw=draw, seed=0)
