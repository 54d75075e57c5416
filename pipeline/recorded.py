"""The settings a cache was made with, read back from its recipes."""

from __future__ import annotations

from typing import Any

from latents.cache.layout import CacheLayout
from latents.cache.refs import read_recipe, require_ref
from latents.errors import CacheError
from latents.mel import mel_spec
from latents.recipe import Recipe, canonical_json
from pipeline.settings import MEL_NAMES


def recorded_settings(layout: CacheLayout) -> dict[str, Any]:
    """Tables of `IngestSettings` as the cache's current recipes say, less the KL-VAE's source.

    Raises:
        CacheError: No ingest has completed, or the clip level is not kept.
    """
    recipes = require_ref(layout, "current").recipes
    if "clip.video" not in recipes:
        raise CacheError(
            f"{layout.root} keeps no clip level, so its sources must be decoded again: ingest them "
            "into a new cache with the other settings, and with `--levels clip,kl` to keep it"
        )
    tables = _clip_tables(read_recipe(layout, recipes["clip.video"]))
    if "kl.audio" in recipes:
        tables |= _sound_tables(read_recipe(layout, recipes["kl.audio"]))
    return tables


def _clip_tables(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = dict(recipe.specification)
    return {
        "clip": {
            "fps": found["fps"],
            "segment_seconds": found["segment_frames"] // found["fps"],
            "tail_frames": found["tail_frames"],
            "size": found["size"],
            "fit": found["fit"],
        },
        "decode": {"backend": found["decode"]["backend"]},
    }


def _sound_tables(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = dict(recipe.specification)
    tables = {
        "window": dict(found["window"]),
        "kl_vae": {"precision": found["kl_vae"]["precision"]},
    }
    for name in MEL_NAMES:
        if canonical_json({**mel_spec(name).canonical}) == canonical_json(found["mel"]):
            tables["mel"] = {"name": name}
    return tables
