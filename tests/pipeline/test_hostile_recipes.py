"""Recipes that hash to their names and say something else: settings, or an error that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.refs import require_ref
from latents.errors import CacheError
from latents.recipe import canonical_json, sealed_json, sha256_hex
from pipeline.recorded import read_recorded, recorded_kl_vae, recorded_modal, recorded_settings
from scripts.golden_observations import GOLDEN_FOLDER
from tests.mutations import hostile_value

RECORDED: dict[str, Any] = json.loads((GOLDEN_FOLDER / "recipes.json").read_bytes())


def read_kl_level(layout: CacheLayout) -> object:
    recipes = require_ref(layout, "current").recipes
    return read_recorded(layout, video_recipe=recipes["kl.video"], audio_recipe=recipes["kl.audio"])


READERS: dict[str, Callable[[CacheLayout], object]] = {
    "settings": recorded_settings,
    "KL-VAE": recorded_kl_vae,
    "modal encoders": recorded_modal,
    "kl level": read_kl_level,
}


class Forger:
    """Writes recipes into a cache's folder, one of them another than it was."""

    def __init__(self, folder: Path, random: Random | None) -> None:
        self.layout = CacheLayout(LocalStorage(folder))
        self._folder, self._random = folder, random

    def write(self) -> None:
        recipes = dict(RECORDED["cases"]["audioset"]["recipes"])
        field = self._random.choice(sorted(recipes)) if self._random else ""
        written = {name: self._write(digest, field) for name, digest in recipes.items()}
        self._put("refs/current.json", sealed_json({"commit": -1, "recipes": written}))

    def _write(self, digest: str, forged: str) -> str:
        recipe = json.loads(json.dumps(RECORDED["recipes"][digest]))
        recipe["parents"] = {
            name: self._write(parent, forged) for name, parent in recipe["parents"].items()
        }
        if recipe["field"] == forged and self._random:
            changed = hostile_value(recipe["specification"], Random(self._random.getrandbits(32)))
            recipe["specification"] = changed
        content = canonical_json(recipe)
        self._put(f"recipes/{sha256_hex(content)}.json", content)
        return sha256_hex(content)

    def _put(self, name: str, content: bytes) -> None:
        (self._folder / name).parent.mkdir(exist_ok=True)
        (self._folder / name).write_bytes(content)


@pytest.mark.parametrize("reader", READERS)
def test_recipes_that_are_sound_are_read(reader: str, tmp_path: Path) -> None:
    forger = Forger(tmp_path, None)
    forger.write()

    assert READERS[reader](forger.layout) is not None


@pytest.mark.parametrize("reader", READERS)
def test_forged_recipes_are_settings_or_refused(reader: str, tmp_path: Path) -> None:
    outcomes = {"read": 0, "refused": 0}
    for seed in range(150):
        forger = Forger(tmp_path, Random(seed))
        try:
            forger.write()
        except (TypeError, ValueError):  # that cannot be written as canonical JSON
            continue
        try:
            READERS[reader](forger.layout)
            outcomes["read"] += 1
        except CacheError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 2
