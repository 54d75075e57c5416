"""A cache of made-up clips in which something moves, small enough to train on in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latents.cache.reader import CachedLevel, open_cache
from latents.clip import ClipKey
from latents.recipe import Recipe, sha256_hex
from latents.testing import NUM_FRAMES, FakeClip, fake_recipes, make_cache

SCALING_FACTOR = 0.5
SHIFT_FACTOR = 0.25


def moving_level(root: Path, *, num_clips: int = 6, seed: int = 0) -> CachedLevel:
    """The ``kl`` level of clips of 8 frames, KL latents (4, 8, 8), in 5 windows of 4 frames."""
    clips = [moving_clip(index, seed=seed) for index in range(num_clips)]
    make_cache(root, clips=clips, recipes=scaled_recipes())
    return open_cache(root, level="kl")


def scaled_recipes(*, kl_vae: dict[str, str] | None = None) -> dict[str, Recipe]:
    """Recipes that name a scaling factor."""
    scale = {"scaling_factor": str(SCALING_FACTOR), "shift_factor": str(SHIFT_FACTOR)}
    return {
        name: Recipe(
            field=name,
            implementation=1,
            specification={"kl_vae": scale if kl_vae is None else kl_vae},
            parents=recipe.parents,
        )
        for name, recipe in fake_recipes().items()
    }


def moving_clip(index: int, *, seed: int = 0) -> FakeClip:
    """A bright column goes one step a frame over a still ground; its place is heard as a row."""
    rng = np.random.default_rng([seed, index])
    colour, ground = rng.normal(size=(4, 1)), rng.normal(scale=0.3, size=(4, 1, 1))
    start = int(rng.integers(8))
    video = np.zeros((NUM_FRAMES, 4, 8, 8)) + ground
    audio = np.zeros((NUM_FRAMES - 3, 4, 8, 8)) - ground
    for frame in range(NUM_FRAMES):
        video[frame, :, :, (start + frame) % 8] += 3 * colour
    for window in range(NUM_FRAMES - 3):
        audio[window, :, (start + window) % 8] += 3 * colour
    tensors = {
        field: np.concatenate([mean, np.full_like(mean, -9.0)], axis=1).astype(np.float16)
        for field, mean in (("kl.video", video), ("kl.audio", audio))
    }
    digest = sha256_hex(f"moving {seed} {index}".encode())
    key = ClipKey(source_digest=digest, start_frame=0, fps=10)
    return FakeClip(key=key, tensors=tensors)
