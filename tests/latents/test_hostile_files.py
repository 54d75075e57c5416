"""JSON files made to do harm: each is read as what it is, or refused with its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from random import Random
from typing import Any

import pytest

from latents.cache.checkpoint import Checkpoint, read_checkpoint
from latents.cache.commit import Commit, RowFile, read_commit
from latents.cache.driver_marks import read_marks, write_mark
from latents.cache.layout import CacheLayout, check_format
from latents.cache.refs import ancestral_recipes, read_recipe, read_ref
from latents.cache.snapshot import load_snapshot
from latents.cache.storage import StoredFile
from latents.errors import CacheError, ConfigError, DamagedError, LatentError
from latents.recipe import canonical_json, recipe_differences, sealed_json, sha256_hex
from latents.testing import fake_recipes
from tests.mutations import damaged, hostile_json, hostile_value

INSIDE = re.compile(
    r"cache\.json|(recipes|rows|commits|checkpoints|refs|drivers)/[A-Za-z0-9][A-Za-z0-9._-]*"
)
COMMIT = Commit(
    number=1,
    previous="a" * 64,
    files={
        "latents": RowFile(sha256="b" * 64, num_rows=4),
        "sources": RowFile(sha256="c" * 64, num_rows=2),
    },
    run={"started": "2026-01-01T00:00:00Z"},
)
CHECKPOINT = Checkpoint(number=255, commit="a" * 64, previous=None, files=COMMIT.files)
RECIPES = fake_recipes()


@dataclass
class FilesAtHand:
    """A storage of some files that is asked for nothing outside the cache's folder."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = "memory"

    def read(self, name: str) -> bytes:
        assert INSIDE.fullmatch(name), f"{name!r} was asked for"
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def replace(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def list(self, folder: str) -> Iterator[StoredFile]:
        return (
            StoredFile(name=name, num_bytes=len(content), modified_seconds=0)
            for name, content in self.files.items()
            if name.startswith(f"{folder}/")
        )

    def open(self, name: str) -> FileIO:
        raise FileNotFoundError(name)


def layout_of(files: Mapping[str, bytes]) -> CacheLayout:
    return CacheLayout(FilesAtHand(dict(files)))  # type: ignore[arg-type]  # it is not written to


def read_the_commit(layout: CacheLayout) -> bytes:
    commit = read_commit(layout, 1)
    assert type(commit.number) is int
    assert isinstance(commit.previous, str | None)
    assert all(isinstance(said, str) for said in commit.run.values())
    return commit.to_json()


def list_marks(layout: CacheLayout) -> object:
    marks = read_marks(layout, now=0)
    return [str(one) for one in (*marks.of("driver"), *marks.of("gc"), *marks.stale)]


@cache
def a_mark() -> bytes:
    files = FilesAtHand()
    write_mark(
        CacheLayout(files),  # type: ignore[arg-type]
        f"drivers/{'0' * 32}.json",
        role="driver",
        purpose="ingest",
        started=5,
    )
    (content,) = files.files.values()
    return content


REF = sealed_json({"commit": 3, "recipes": {name: one.digest for name, one in RECIPES.items()}})
FILES: dict[str, tuple[str, Callable[[], bytes], Callable[[CacheLayout], Any]]] = {
    "commit": (
        "commits/000000000001.json",
        COMMIT.to_json,
        read_the_commit,
    ),
    "checkpoint": (
        "checkpoints/000000000255.json",
        CHECKPOINT.to_json,
        lambda layout: read_checkpoint(layout, 255).to_json(),
    ),
    "ref": ("refs/current.json", lambda: REF, lambda layout: read_ref(layout, "current")),
    "format": (
        "cache.json",
        lambda: sealed_json({"format": "mmldm-cache", "version": 2}),
        check_format,
    ),
    "mark": (f"drivers/{'0' * 32}.json", a_mark, list_marks),
}


def outcome(name: str, content: bytes, read: Callable[[CacheLayout], Any]) -> Any:
    """What was read, or None where it was refused by an error that says so."""
    try:
        return read(layout_of({name: content}))
    except LatentError:
        return None


@pytest.mark.parametrize("kind", FILES)
def test_a_mutilated_file_is_what_it_was_or_is_refused(kind: str) -> None:
    name, write, read = FILES[kind]
    content = write()
    whole = read(layout_of({name: content}))
    seen = set()
    for seed in range(1200):
        random = Random(f"{kind} {seed}")
        if seed % 2:
            changed = damaged(content, random, [one() for _, one, _ in FILES.values()])
        else:
            changed = hostile_json(json.loads(content), random)
        found = outcome(name, changed, read)
        if kind == "mark":  # a damaged one may still be somebody's
            assert found is not None
        else:
            assert found in (None, whole), f"seed {seed}"
        seen.add(changed)
    assert len(seen) > 900


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_says_what_it_should_not_is_refused_though_it_is_sealed(kind: str) -> None:
    name, write, read = FILES[kind]
    whole = json.loads(write())
    del whole["seal"]
    num_refused = 0
    for seed in range(1200):
        value = hostile_value(whole, Random(f"{kind} {seed}"))
        try:
            content = sealed_json(value)
        except (TypeError, ValueError):  # it cannot be sealed
            continue
        found = outcome(name, content, read)
        num_refused += found is None
        if kind in ("commit", "checkpoint"):
            assert found in (None, content), f"seed {seed}"
    assert num_refused > 300 or kind == "mark"


def test_a_recipe_that_says_what_it_should_not_is_refused_though_it_hashes() -> None:
    whole = json.loads(RECIPES["kl.video"].to_json())
    (parent,) = RECIPES["kl.video"].parents
    num_refused = 0
    for seed in range(1500):
        random = Random(seed)
        content = hostile_json(whole, random)
        if seed % 2:
            try:
                content = canonical_json(hostile_value(whole, random))
            except (TypeError, ValueError):
                continue
        digest = sha256_hex(content)
        files = {
            f"recipes/{digest}.json": content,
            f"recipes/{parent.digest}.json": parent.to_json(),
        }
        try:
            recipe = read_recipe(layout_of(files), digest)
        except DamagedError:
            num_refused += 1
            continue
        assert recipe.to_json() == content
        assert (type(recipe.field), type(recipe.implementation)) == (str, int)
        assert isinstance(recipe_differences(recipe, RECIPES["kl.video"]), tuple)
    assert num_refused > 500


def test_recipes_whose_ancestors_double_with_each_generation_are_refused_at_once() -> None:
    files: dict[str, bytes] = {}
    parents: dict[str, str] = {}
    for _ in range(60):
        generation = {}
        for name in ("a", "b"):
            recipe = {"field": name, "implementation": 1, "parents": parents, "specification": {}}
            content = canonical_json(recipe)
            generation[name] = sha256_hex(content)
            files[f"recipes/{generation[name]}.json"] = content
        parents = generation

    with pytest.raises(DamagedError, match="more than 64 ancestors"):
        read_recipe(layout_of(files), parents["a"])


def test_recipes_of_a_thousand_generations_are_refused() -> None:
    files: dict[str, bytes] = {}
    parents: dict[str, str] = {}
    for _ in range(1000):
        recipe = {"field": "a", "implementation": 1, "parents": parents, "specification": {}}
        content = canonical_json(recipe)
        parents = {"a": sha256_hex(content)}
        files[f"recipes/{parents['a']}.json"] = content

    with pytest.raises(DamagedError, match=r"ancestors|Recursion"):
        read_recipe(layout_of(files), parents["a"])


@pytest.mark.parametrize(
    "recipes",
    [
        {"kl.video": "../../../etc/passwd"},
        {"kl.video": "/etc/passwd"},
        {"kl.video": "a\0b"},
        {"kl.video": "A" * 64},
        {"../../etc/passwd": "a" * 64},
        {"": "a" * 64},
    ],
)
def test_a_ref_names_no_recipe_outside_the_cache(recipes: dict[str, str]) -> None:
    layout = layout_of({"refs/current.json": sealed_json({"commit": 0, "recipes": recipes})})

    with pytest.raises(DamagedError, match=r"refs/current\.json"):
        ancestral_recipes(layout, read_ref(layout, "current"))


@pytest.mark.parametrize("digest", ["../../etc/passwd", "/etc/passwd", "", "a\0b", "a" * 64 + "\n"])
def test_a_recipe_names_no_parent_outside_the_cache(digest: str) -> None:
    content = canonical_json(
        {
            "field": "kl.video",
            "implementation": 1,
            "parents": {"clip.video": digest},
            "specification": {},
        }
    )
    name = sha256_hex(content)

    with pytest.raises(DamagedError, match="a recipe is named by its SHA-256"):
        read_recipe(layout_of({f"recipes/{name}.json": content}), name)


@pytest.mark.parametrize(
    "sha256", ["../../etc/passwd", "/etc/passwd", "", "A" * 64, "a" * 64 + "\n"]
)
def test_a_commit_names_no_rows_outside_the_cache(sha256: str) -> None:
    rows = {"latents": {"sha256": sha256, "num_rows": 1}}
    content = sealed_json({"number": 0, "previous": None, "rows": rows, "run": {}})
    layout = layout_of({"commits/000000000000.json": content})

    with pytest.raises(DamagedError, match=r"commits/000000000000\.json"):
        load_snapshot(layout, 0)


@pytest.mark.parametrize("name", ["../current", "/etc/passwd", "a/b", "..", "", "a\0", "a\nb"])
def test_a_ref_of_such_a_name_is_not_looked_for(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a ref"):
        read_ref(layout_of({}), name)


@pytest.mark.parametrize("commit", [10**12, 2**63, 10**30, -2, True, None, "1", 0.5])
def test_a_ref_names_a_commit_that_there_can_be(commit: object) -> None:
    text = json.dumps({"commit": commit, "recipes": {}}, separators=(",", ":"), sort_keys=True)
    seal = sha256_hex(text.encode())
    layout = layout_of({"refs/current.json": f'{text[:-1]},"seal":"{seal}"}}'.encode()})

    with pytest.raises(DamagedError, match=r"refs/current\.json"):
        read_ref(layout, "current")


@pytest.mark.parametrize("literal", [b"9" * 10_000_000, b'"' + b"a" * 10_000_000 + b'"'])
def test_a_file_of_ten_megabytes_is_refused_in_a_moment(literal: bytes) -> None:
    content = COMMIT.to_json().replace(b'"2026-01-01T00:00:00Z"', literal)

    with pytest.raises(CacheError, match=r"commits/000000000001\.json") as caught:
        read_commit(layout_of({"commits/000000000001.json": content}), 1)
    assert len(str(caught.value)) < 1000
