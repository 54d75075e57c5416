"""What made a field, as canonical JSON, and its digest: the unit of identity of the cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as derived
from typing import Any, TypeAlias

Canonical: TypeAlias = (
    bool | int | str | list["Canonical"] | tuple["Canonical", ...] | dict[str, "Canonical"] | None
)
"""JSON without floats: a float's text is not unique, so numbers with a point are strings."""

MAX_DEPTH = 64
"""Lists and objects inside one another. What is nested no deeper never overflows the stack."""
MAX_ANCESTORS = 64
"""Of one recipe, each counted as often as it is come by; the graph of fields has four."""


def canonical_json(value: Any) -> bytes:
    """The one byte string of a value: sorted keys, no spaces, UTF-8, no floats.

    Raises:
        TypeError: The value holds a float (give ``repr(x)`` instead), a key that is not a string,
            or something not of JSON, or is nested deeper than `MAX_DEPTH`.
    """
    _refuse_ambiguous(value, "$", depth=0)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def sha256_hex(content: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def is_sha256_hex(value: object) -> bool:
    """Whether this is the text of a SHA-256, and so a safe file name."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a field's bytes depend on, and nothing else.

    Workers, paths, device and library versions are not part of it.
    """

    field: str
    """For example ``kl.video``."""
    implementation: int
    """Raised by hand when the code that makes this field changes its numbers."""
    specification: dict[str, Canonical]
    """Settings and encoder identity."""
    parents: tuple[Recipe, ...] = ()
    """Recipes of the fields this one is made from, in order of field."""
    digest: str = derived(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(sorted(self.parents, key=lambda p: p.field)))
        object.__setattr__(self, "digest", sha256_hex(self.to_json()))

    def to_json(self) -> bytes:
        """The canonical form stored in ``recipes/<digest>.json``."""
        return canonical_json(
            {
                "field": self.field,
                "implementation": self.implementation,
                "parents": {parent.field: parent.digest for parent in self.parents},
                "specification": self.specification,
            }
        )

    def with_ancestors(self) -> Iterator[Recipe]:
        """This recipe and all it is made from, parents first."""
        for parent in self.parents:
            yield from parent.with_ancestors()
        yield self


def recipe_from_json(content: bytes, load: Mapping[str, bytes]) -> Recipe:
    """Inverse of `Recipe.to_json`; ``load`` maps digests to the JSON of parent recipes.

    Raises:
        ValueError: The content is not the canonical JSON of a recipe.
    """
    parsed = _json_object(content)
    try:
        if len(parsed["parents"]) > MAX_ANCESTORS:
            raise ValueError(f"it has {len(parsed['parents'])} parents")
        recipe = Recipe(
            field=parsed["field"],
            implementation=parsed["implementation"],
            specification=parsed["specification"],
            parents=tuple(
                recipe_from_json(load[digest], load) for digest in parsed["parents"].values()
            ),
        )
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"it is not a recipe ({type(error).__name__}: {error})") from error
    is_recipe = (
        isinstance(recipe.field, str)
        and type(recipe.implementation) is int
        and isinstance(recipe.specification, dict)
    )
    if not is_recipe or recipe.to_json() != content:
        raise ValueError("it is not the canonical JSON of a recipe")
    # Fields that share their parents are come by twice, theirs four times, and so on.
    if sum(1 for _ in recipe.with_ancestors()) > MAX_ANCESTORS:
        raise ValueError(f"it has more than {MAX_ANCESTORS} ancestors")
    return recipe


def recipe_documents(recipes: Iterable[Recipe]) -> dict[str, Any]:
    """Some recipes with all they were made from, as JSON values by digest."""
    return {
        one.digest: json.loads(one.to_json())
        for recipe in recipes
        for one in recipe.with_ancestors()
    }


def recipes_from_documents(
    digests: Mapping[str, str], documents: Mapping[str, Any]
) -> dict[str, Recipe]:
    """Recipes by field, of what `recipe_documents` gave.

    Args:
        digests: Which recipe each field has.
        documents: Theirs, and those of all they were made from.

    Raises:
        KeyError: A recipe is not there.
        ValueError: One does not hash to its name, is none, or is of another field.
    """
    contents = {digest: canonical_json(one) for digest, one in documents.items()}
    for digest, content in contents.items():
        if sha256_hex(content) != digest:
            raise ValueError(f"recipe {digest[:12]} does not hash to its name")
    recipes = {
        field: recipe_from_json(contents[digest], contents) for field, digest in digests.items()
    }
    for field, recipe in recipes.items():
        if recipe.field != field:
            raise ValueError(f"it gives {field} a recipe of {recipe.field}")
    return recipes


def recipe_differences(found: Recipe, wanted: Recipe) -> tuple[str, ...]:
    """The parts in which two recipes of a field differ, each as ``path: found -> wanted``."""
    lines = list(_differences(found.specification, wanted.specification, found.field))
    if found.implementation != wanted.implementation:
        lines.append(
            f"{found.field} implementation: {found.implementation} -> {wanted.implementation}"
        )
    before = {parent.field: parent for parent in found.parents}
    after = {parent.field: parent for parent in wanted.parents}
    for field in sorted(before.keys() | after.keys()):
        if field in before and field in after:
            lines.extend(recipe_differences(before[field], after[field]))
        else:
            change = (
                "made from it -> not" if field in before else "not made from it -> made from it"
            )
            lines.append(f"{found.field} parent {field}: {change}")
    return tuple(lines)


def _differences(found: Canonical, wanted: Canonical, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if key in found and key in wanted:
                yield from _differences(found[key], wanted[key], f"{path} {key}")
            elif key in found:
                yield f"{path} {key}: {_short(found[key])} -> absent"
            else:
                yield f"{path} {key}: absent -> {_short(wanted[key])}"
    elif canonical_json(found) != canonical_json(wanted):
        yield f"{path}: {_short(found)} -> {_short(wanted)}"


def _short(value: Canonical) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _refuse_ambiguous(value: Any, path: str, *, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TypeError(f"{path[:100]}... is nested deeper than {MAX_DEPTH}")
    if isinstance(value, float):
        raise TypeError(f"{path} is the float {value!r}; canonical JSON takes repr() strings")
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; canonical JSON takes strings")
            _refuse_ambiguous(child, f"{path}.{key}", depth=depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            _refuse_ambiguous(child, f"{path}[{index}]", depth=depth + 1)


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is not a JSON object")
    return parsed


def sealed_json(value: Mapping[str, Canonical]) -> bytes:
    """Canonical JSON of an object with its own SHA-256 beside it, under ``seal``."""
    return canonical_json({**value, "seal": sha256_hex(canonical_json(value))})


def open_sealed_json(content: bytes) -> dict[str, Any]:
    """Inverse of `sealed_json`.

    Raises:
        ValueError: The content is not such an object, or differs from what was sealed.
    """
    parsed = _json_object(content)
    if "seal" not in parsed:
        raise ValueError("it is not sealed")
    seal = parsed.pop("seal")
    try:
        is_intact = sealed_json(parsed) == content
    except TypeError:  # nothing that was sealed nests so deep or holds a float
        is_intact = False
    if not is_intact:
        raise ValueError(f"its content does not match its seal {str(seal)[:12]}")
    return parsed
