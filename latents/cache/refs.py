"""Refs: names for a commit and the recipes that belong together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from latents.cache.layout import LAST_COMMIT, CacheLayout
from latents.durable import reading_from, reason, writing_to
from latents.errors import CacheError, ConfigError, DamagedError
from latents.fields import FIELDS
from latents.recipe import (
    Recipe,
    is_sha256_hex,
    open_sealed_json,
    recipe_from_json,
    sealed_json,
    sha256_hex,
)

_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REF_FILE = re.compile(r"refs/([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """A snapshot under a name."""

    commit: int
    recipes: Mapping[str, str]
    """Field name to recipe digest."""


def write_ref(layout: CacheLayout, name: str, ref: Ref) -> None:
    """Points a name at a commit and its recipes, atomically, whatever it pointed at.

    Raises:
        ConfigError: That is no name for a ref.
        CacheError: The cache cannot be written.
    """
    check_ref_name(name)
    with writing_to(layout.url):
        layout.storage.replace(layout.ref(name), _ref_to_json(ref))


def move_ref(layout: CacheLayout, name: str, change: Callable[[Ref | None], Ref | None]) -> None:
    """Changes a ref by what it is, so that none of several drivers' changes is lost.

    Args:
        layout: The cache.
        name: Of the ref.
        change: From what the ref is now (None: there is none) to what it shall be (None: leave
            it). Called again where another driver was faster.

    Raises:
        ConfigError: That is no name for a ref.
        CacheError: The cache cannot be written.
        DamagedError: The ref's file is damaged.
    """
    check_ref_name(name)
    while True:
        content = _ref_bytes(layout, name)
        wanted = change(None if content is None else _parse(name, content))
        if wanted is None:
            return
        with writing_to(layout.url):
            if layout.storage.swap(layout.ref(name), _ref_to_json(wanted), expected=content):
                return


def delete_ref(layout: CacheLayout, name: str) -> None:
    """Forgets a name; what only it reached is removed by the next gc.

    Raises:
        CacheError: There is no such ref, or the cache cannot be written.
    """
    require_ref(layout, name)
    with writing_to(layout.url):
        layout.storage.delete(layout.ref(name))


def read_ref(layout: CacheLayout, name: str) -> Ref | None:
    """The ref of that name, or None; raises `DamagedError` where its file is not a ref."""
    check_ref_name(name)
    content = _ref_bytes(layout, name)
    return None if content is None else _parse(name, content)


def ref_names(layout: CacheLayout) -> list[str]:
    """Names of all refs, in order; raises `CacheError` where they cannot be listed."""
    with reading_from(layout.url):
        names = [file.name for file in layout.storage.list("refs")]
    return sorted(found[1] for found in map(_REF_FILE.fullmatch, names) if found)


def check_ref_name(name: str) -> None:
    """Raises `ConfigError` where this is no name for a ref."""
    if not _REF_NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a ref; wanted letters, digits, '-', '_' and '.', the first "
            "a letter or digit"
        )


def _ref_bytes(layout: CacheLayout, name: str) -> bytes | None:
    try:
        return layout.storage.read(layout.ref(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(layout.ref(name), 0, f"cannot be read ({reason(error)})") from error


def _parse(name: str, content: bytes) -> Ref:
    try:
        return _ref_from_json(content)
    except ValueError as error:
        raise DamagedError(f"refs/{name}.json", 0, f"the ref cannot be read: {error}") from error


def _ref_to_json(ref: Ref) -> bytes:
    return sealed_json({"commit": ref.commit, "recipes": dict(ref.recipes)})


def _ref_from_json(content: bytes) -> Ref:
    parsed = open_sealed_json(content)
    commit, recipes = parsed.get("commit"), parsed.get("recipes")
    if type(commit) is not int or not isinstance(recipes, dict):
        raise ValueError("it holds no commit number or no recipes")
    if not -1 <= commit <= LAST_COMMIT or not recipes.keys() <= FIELDS.keys():
        raise ValueError("it names a commit or a field that there cannot be")
    if not all(map(is_sha256_hex, recipes.values())):
        raise ValueError("it names recipes by something else than their digest")
    return Ref(commit=commit, recipes=recipes)


def require_ref(layout: CacheLayout, name: str) -> Ref:
    """The ref of that name; raises `CacheError` where there is none."""
    ref = read_ref(layout, name)
    if ref is None:
        raise CacheError(
            f"{layout.url} has no ref {name!r}; it has {', '.join(ref_names(layout)) or 'none'}. "
            + (
                "The ref 'current' appears when an ingest has completed: run it again and it goes "
                "on where it stopped"
                if name == "current"
                else "`mmldm cache refs ls` shows them"
            )
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
    with writing_to(layout.url):
        for recipe in recipes:
            for ancestor in recipe.with_ancestors():
                layout.storage.create(layout.recipe(ancestor.digest), ancestor.to_json())


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
    name = layout.recipe(digest)
    if not is_sha256_hex(digest):
        raise DamagedError(name, 0, "a recipe is named by its SHA-256")
    try:
        content = layout.storage.read(name)
    except FileNotFoundError:
        raise DamagedError(name, 0, "the recipe is missing") from None
    except OSError as error:
        raise DamagedError(name, 0, f"the recipe cannot be read ({reason(error)})") from error
    if sha256_hex(content) != digest:
        raise DamagedError(name, 0, "the recipe does not hash to its name")
    return content
