"""Refs and stored recipes: read back as written, or damage with a path."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.refs import (
    Ref,
    ancestral_recipes,
    delete_ref,
    move_ref,
    read_recipe,
    read_ref,
    ref_names,
    require_ref,
    write_recipes,
    write_ref,
)
from latents.errors import CacheError, ConfigError, DamagedError
from latents.recipe import Canonical, canonical_json, sealed_json, sha256_hex
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
    assert [file.name for file in layout.storage.list("refs")] == ["refs/current.json"]


def test_before_an_ingest_completes_there_is_no_ref(layout: CacheLayout) -> None:
    assert read_ref(layout, "current") is None
    with pytest.raises(
        CacheError,
        match=r"has no ref 'current'; it has none\. The ref 'current' appears when an ingest has "
        "completed",
    ):
        require_ref(layout, "current")


def test_a_ref_that_is_not_there_is_told_with_those_that_are(layout: CacheLayout) -> None:
    for name in ("paper", "current"):
        write_ref(layout, name, Ref(commit=0, recipes={}))

    with pytest.raises(CacheError, match=r"has no ref 'best'; it has current, paper\."):
        require_ref(layout, "best")


class TestNames:
    @pytest.mark.parametrize("name", ["current", "0", "v1.2", "a_b-c", "A" * 100, "a..b"])
    def test_letters_digits_and_three_signs_make_a_name(
        self, layout: CacheLayout, name: str
    ) -> None:
        write_ref(layout, name, Ref(commit=3, recipes=DIGESTS))

        assert read_ref(layout, name) == Ref(commit=3, recipes=DIGESTS)
        assert ref_names(layout) == [name]

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/a",
            "a\\b",
            ".lock",
            "-f",
            "a b",
            "a\n",
            "ä",
            "\0",
            "A" * 101,
        ],
    )
    def test_another_name_is_refused_wherever_it_is_used(
        self, layout: CacheLayout, name: str
    ) -> None:
        ref = Ref(commit=3, recipes=DIGESTS)
        before = [file.name for file in layout.storage.list("")]
        uses: list[Callable[[], object]] = [
            lambda: write_ref(layout, name, ref),
            lambda: read_ref(layout, name),
            lambda: require_ref(layout, name),
            lambda: move_ref(layout, name, lambda now: ref),
            lambda: delete_ref(layout, name),
        ]

        for use in uses:
            with pytest.raises(ConfigError, match="is no name for a ref; wanted letters, digits"):
                use()
        assert [file.name for file in layout.storage.list("")] == before

    def test_names_are_listed_in_order_and_other_files_passed_over(
        self, layout: CacheLayout
    ) -> None:
        for name in ("c", "a", "b"):
            move_ref(layout, name, lambda now: Ref(commit=3, recipes={}))
        for name in (".partial-x", "notes.txt", "deep/d.json", "-e.json"):
            layout.storage.create(f"refs/{name}", b"")

        assert ref_names(layout) == ["a", "b", "c"]

    def test_refs_that_cannot_be_listed_are_a_cache_error(self, layout: CacheLayout) -> None:
        layout.storage.create("refs", b"a file where the folder should be")

        with pytest.raises(CacheError, match=r"reading failed \(Not a directory\)"):
            ref_names(layout)


class TestMoving:
    def test_a_ref_is_moved_by_what_it_is(self, layout: CacheLayout) -> None:
        seen: list[Ref | None] = []

        def advance(now: Ref | None) -> Ref:
            seen.append(now)
            return Ref(commit=now.commit + 1 if now else 0, recipes=DIGESTS)

        for _ in range(2):
            move_ref(layout, "current", advance)

        assert seen == [None, Ref(commit=0, recipes=DIGESTS)]
        assert read_ref(layout, "current") == Ref(commit=1, recipes=DIGESTS)

    @pytest.mark.parametrize("is_there", [False, True])
    def test_it_may_be_left_alone(self, layout: CacheLayout, is_there: bool) -> None:
        if is_there:
            write_ref(layout, "current", Ref(commit=3, recipes=DIGESTS))
        before = read_ref(layout, "current")

        move_ref(layout, "current", lambda now: None)

        assert read_ref(layout, "current") == before

    def test_a_change_is_thought_over_where_another_was_faster(self, layout: CacheLayout) -> None:
        write_ref(layout, "current", Ref(commit=1, recipes={}))
        seen: list[int] = []

        def advance(now: Ref | None) -> Ref | None:
            assert now is not None
            if not seen:
                write_ref(layout, "current", Ref(commit=7, recipes={}))
            seen.append(now.commit)
            return Ref(commit=now.commit + 1, recipes={})

        move_ref(layout, "current", advance)

        assert seen == [1, 7]
        assert read_ref(layout, "current") == Ref(commit=8, recipes={})

    def test_no_change_of_many_drivers_is_lost(self, layout: CacheLayout) -> None:
        def count(_: int) -> None:
            for _ in range(25):
                move_ref(
                    layout,
                    "current",
                    lambda now: Ref(commit=now.commit + 1 if now else 1, recipes={}),
                )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count, range(4)))

        assert read_ref(layout, "current") == Ref(commit=100, recipes={})

    def test_a_damaged_ref_is_not_moved(self, layout: CacheLayout) -> None:
        layout.storage.replace(layout.ref("current"), b"{}")

        with pytest.raises(DamagedError):
            move_ref(layout, "current", lambda now: Ref(commit=0, recipes={}))
        assert layout.storage.read(layout.ref("current")) == b"{}"


class TestDeleting:
    def test_a_deleted_ref_is_gone_and_others_stay(self, layout: CacheLayout) -> None:
        for name in ("current", "paper"):
            move_ref(layout, name, lambda now: Ref(commit=3, recipes={}))

        delete_ref(layout, "paper")

        assert read_ref(layout, "paper") is None
        assert ref_names(layout) == ["current"]

    def test_one_that_is_not_there_is_told(self, layout: CacheLayout) -> None:
        write_ref(layout, "current", Ref(commit=3, recipes={}))

        with pytest.raises(CacheError, match=r"has no ref 'paper'; it has current\."):
            delete_ref(layout, "paper")

    def test_its_name_may_be_used_again(self, layout: CacheLayout) -> None:
        write_ref(layout, "paper", Ref(commit=3, recipes={}))
        delete_ref(layout, "paper")

        move_ref(layout, "paper", lambda now: Ref(commit=4, recipes={}) if now is None else None)

        assert read_ref(layout, "paper") == Ref(commit=4, recipes={})


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
        sealed_json({"commit": -2, "recipes": {}}),
        sealed_json({"commit": 10**12, "recipes": {}}),
        sealed_json({"commit": 1, "recipes": {"kl.smell": "a" * 64}}),
        sealed_json({"commit": 1, "recipes": []}),
        sealed_json({"commit": 1, "recipes": {"kl.video": None}}),
        sealed_json({"commit": 1, "recipes": {"kl.video": "../../x"}}),
    ],
)
def test_a_file_that_is_not_a_ref_is_damage(content: bytes, layout: CacheLayout) -> None:
    layout.storage.replace(layout.ref("current"), content)

    with pytest.raises(DamagedError) as caught:
        read_ref(layout, "current")
    assert (caught.value.path, caught.value.offset) == ("refs/current.json", 0)


def test_a_ref_that_cannot_be_written_is_a_cache_error(layout: CacheLayout) -> None:
    layout.storage.create("refs", b"a file where the folder should be")

    with pytest.raises(CacheError, match="writing failed"):
        write_ref(layout, "current", Ref(commit=0, recipes={}))


def test_a_ref_that_cannot_be_read_is_damage(layout: CacheLayout) -> None:
    Path(layout.url, layout.ref("current")).mkdir(parents=True)

    with pytest.raises(DamagedError, match=r"cannot be read \(Is a directory\)"):
        read_ref(layout, "current")


def test_recipes_are_stored_with_all_they_are_made_from(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())

    stored = {Path(file.name).stem for file in layout.storage.list("recipes")}
    assert stored == {r.digest for recipe in RECIPES.values() for r in recipe.with_ancestors()}
    for recipe in RECIPES.values():
        assert read_recipe(layout, recipe.digest) == recipe


def test_storing_recipes_again_changes_nothing(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    recipes = Path(layout.url, "recipes")
    before = {path: path.stat().st_ino for path in recipes.iterdir()}
    write_recipes(layout, RECIPES.values())

    assert {path: path.stat().st_ino for path in recipes.iterdir()} == before


def test_a_ref_names_the_recipes_of_its_fields_and_of_all_they_were_made_from(
    layout: CacheLayout,
) -> None:
    write_recipes(layout, RECIPES.values())
    above = {recipe.parents[0].field: recipe.parents[0].digest for recipe in RECIPES.values()}

    assert ancestral_recipes(layout, Ref(commit=0, recipes=DIGESTS)) == DIGESTS | above
    assert ancestral_recipes(layout, None) == {}


@pytest.mark.parametrize("which", ["kl.video", "clip.video"])
def test_a_missing_recipe_is_damage(which: str, layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    (lost,) = (r for r in RECIPES["kl.video"].with_ancestors() if r.field == which)
    layout.storage.delete(layout.recipe(lost.digest))

    with pytest.raises(DamagedError, match="the recipe is missing") as caught:
        read_recipe(layout, DIGESTS["kl.video"])
    assert caught.value.path == f"recipes/{lost.digest}.json"


def test_a_changed_recipe_is_damage(layout: CacheLayout) -> None:
    write_recipes(layout, RECIPES.values())
    layout.storage.replace(layout.recipe(DIGESTS["kl.video"]), RECIPES["kl.audio"].to_json())

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
    content = canonical_json(value)
    layout.storage.replace(layout.recipe(sha256_hex(content)), content)

    with pytest.raises(DamagedError):
        read_recipe(layout, sha256_hex(content))
