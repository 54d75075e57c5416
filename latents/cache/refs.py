"""Refs: names for a commit and the recipes that belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from latents.cache.layout import CacheLayout
from latents.durable import create_file, replace_file, writing_to
from latents.errors import CacheError, DamagedError
from latents.recipe import (
    Recipe,
    is_sha256_hex,
    open_sealed_json,
    recipe_from_json,
    sealed_json,
    sha256_hex,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """A snapshot under a name."""

    commit: int
    recipes: Mapping[str, str]
    """Field name to recipe digest."""


def write_ref(layout: CacheLayout, name: str, ref: Ref) -> None:
    """Points a name at a commit and its recipes, atomically.

    Raises:
        CacheError: The cache cannot be written.
    """
    content = sealed_json({"commit": ref.commit, "recipes": dict(ref.recipes)})
    with writing_to(layout.root):
        replace_file(layout.ref(name), content)


def read_ref(layout: CacheLayout, name: str) -> Ref | None:
    """The ref of that name, or None; raises `DamagedError` where its file is not a ref."""
    path = layout.ref(name)
    try:
        return _ref_from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(f"refs/{path.name}", 0, f"the ref cannot be read: {error}") from error


def _ref_from_json(content: bytes) -> Ref:
    parsed = open_sealed_json(content)
    commit, recipes = parsed.get("commit"), parsed.get("recipes")
    if type(commit) is not int or not isinstance(recipes, dict):
        raise ValueError("it holds no commit number or no recipes")
    if not all(map(is_sha256_hex, recipes.values())):
        raise ValueError("it names recipes by something else than their digest")
    return Ref(commit=commit, recipes=recipes)


def require_ref(layout: CacheLayout, name: str) -> Ref:
    """The ref of that name; raises `CacheError` where there is none."""
    ref = read_ref(layout, name)
    if ref is None:
        raise CacheError(
            f"{layout.root} has no ref {name!r}: no ingest into it has completed yet; "
            "run the same `mmldm ingest` again and it goes on where it stopped"
        )
    return ref


def ancestral_recipes(layout: CacheLayout, ref: Ref | None) -> dict[str, str]:
    """Recipe digests of a ref's fields and of all fields that those were made from."""
    found: dict[str, str] = {}
    for digest in ref.recipes.values() if ref else ():
        for ancestor in read_recipe(layout, digest).with_ancestors():
            found[ancestor.field] = ancestor.digest
    return found


def write_recipes(layout: CacheLayout, recipes: Iterable[Recipe]) -> None:
    """Stores recipes and all they are made from; those already there are left alone.

    Raises:
        CacheError: The cache cannot be written.
    """
    with writing_to(layout.root):
        for recipe in recipes:
            for ancestor in recipe.with_ancestors():
                create_file(layout.recipe(ancestor.digest), ancestor.to_json())


def read_recipe(layout: CacheLayout, digest: str) -> Recipe:
    """A stored recipe with its ancestors; raises `DamagedError` where one is not as it was."""
    content = _recipe_bytes(layout, digest)
    try:
        return recipe_from_json(content, _StoredRecipes(layout))
    except ValueError as error:
        raise DamagedError(f"recipes/{digest}.json", 0, f"cannot be read: {error}") from error


class _StoredRecipes(dict[str, bytes]):
    """Recipe JSON by digest, read on demand."""

    def __init__(self, layout: CacheLayout) -> None:
        super().__init__()
        self._layout = layout

    def __missing__(self, digest: str) -> bytes:
        return _recipe_bytes(self._layout, digest)


def _recipe_bytes(layout: CacheLayout, digest: str) -> bytes:
    path = layout.recipe(digest)
    name = f"recipes/{path.name}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(name, 0, "the recipe is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a digest that is no file name
        raise DamagedError(name, 0, f"the recipe cannot be read: {error}") from error
    if sha256_hex(content) != digest:
        raise DamagedError(name, 0, "the recipe does not hash to its name")
    return content
