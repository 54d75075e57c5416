"""Refs and stored recipes: read back as written, or damage with a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.refs import (
    Ref,
    read_recipe,
    read_ref,
    require_ref,
    write_recipes,
    write_ref,
)
from latents.durable import replace_file
from latents.errors import CacheError, DamagedError
from latents.recipe import Canonical, sealed_json, sha256_hex
from latents.testing import fake_recipes

RECIPES = fake_recipes()
DIGESTS = {field: recipe.digest for field, recipe in RECIPES.items()}


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


def test_a_ref_is_read_back_as_it_was(layout: CacheLayout) -> None:
    write_ref(layout, "current", Ref(commit=3, recipes=DIGESTS))

    assert read_ref(layout, "current") == Ref(commit=3, recipes=DIGESTS)
    assert require_ref(layout, "current") == Ref(commit=3, recipes=DIGESTS)


def test_a_ref_moves_whole(layout: CacheLayout) -> None:
    write_ref(layout, "current", Ref(commit=3, recipes=DIGESTS))
    write_ref(layout, "current", Ref(commit=4, recipes={}))

    assert read_ref(layout, "current") == Ref(commit=4, recipes={})
    assert [path.name for path in (layout.root / "refs").iterdir()] == ["current.json"]


def test_before_an_ingest_completes_there_is_no_ref(layout: CacheLayout) -> None:
    assert read_ref(layout, "current") is None
    with pytest.raises(CacheError, match="has no ref 'current': no ingest into it has completed"):
        require_ref(layout, "current")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"commit":1,"recipes":{}}',
        sealed_json({}),
        sealed_json({"commit": "1", "recipes": {}}),
        sealed_json({"commit": True, "recipes": {}}),
        sealed_json({"commit": 1, "recipes": []}),
        sealed_json({"commit": 1, "recipes": {"kl.video": None}}),
        sealed_json({"commit": 1, "recipes": {"kl.video": "../../x"}}),
    ],
)
def test_a_file_that_is_not_a_ref_is_damage(content: bytes, layout: CacheLayout) -> None:
    replace_file(layout.ref("current"), content)

    with pytest.raises(DamagedError) as caught:
        read_ref(layout, "current")
    assert (caught.value.path, caught.value.offset) == ("refs/current.json", 0)


def test_a_ref_that_cannot_be_written_is_a_cache_error(layout: CacheLayout) -> None:
    (layout.root / "refs").rmdir()

    with pytest.raises(CacheError, match="writing failed"):
        write_ref(layout, "current", Ref(commit=0, recipes={}))


def test_recipes_are_stored_with_all_they_are_made_from(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())

    stored = {path.stem for path in (layout.root / "recipes").iterdir()}
    assert stored == {r.digest for recipe in RECIPES.values() for r in recipe.with_ancestors()}
    for recipe in RECIPES.values():
        assert read_recipe(layout, recipe.digest) == recipe


def test_storing_recipes_again_changes_nothing(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    before = {path: path.stat().st_ino for path in (layout.root / "recipes").iterdir()}
    write_recipes(layout, RECIPES.values())

    assert {path: path.stat().st_ino for path in (layout.root / "recipes").iterdir()} == before


@pytest.mark.parametrize("which", ["kl.video", "clip.video"])
def test_a_missing_recipe_is_damage(which: str, layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    (lost,) = (r for r in RECIPES["kl.video"].with_ancestors() if r.field == which)
    layout.recipe(lost.digest).unlink()

    with pytest.raises(DamagedError, match="the recipe is missing") as caught:
        read_recipe(layout, DIGESTS["kl.video"])
    assert caught.value.path == f"recipes/{lost.digest}.json"


def test_a_changed_recipe_is_damage(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    replace_file(layout.recipe(DIGESTS["kl.video"]), RECIPES["kl.audio"].to_json())

    with pytest.raises(DamagedError, match="the recipe does not hash to its name"):
        read_recipe(layout, DIGESTS["kl.video"])


@pytest.mark.parametrize(
    "parents", [["a" * 64], {"clip.video": "../x"}, {"clip.video": "\0"}, {"clip.video": "x" * 999}]
)
def test_a_recipe_of_another_form_is_damage_even_where_it_hashes(
    parents: Canonical, layout: CacheLayout
) -> None:
    value: dict[str, Canonical] = {
        "field": "kl.video",
        "implementation": 1,
        "parents": parents,
        "specification": {},
    }
    from latents.recipe import canonical_json

    content = canonical_json(value)
    replace_file(layout.recipe(sha256_hex(content)), content)

    with pytest.raises(DamagedError):
        read_recipe(layout, sha256_hex(content))
