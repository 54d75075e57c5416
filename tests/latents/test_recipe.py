"""Recipes: one byte string for one meaning, and a digest that changes exactly with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.recipe import (
    Canonical,
    Recipe,
    canonical_json,
    is_sha256_hex,
    open_sealed_json,
    recipe_differences,
    recipe_from_json,
    sealed_json,
    sha256_hex,
)

CLIP = Recipe(field="clip.video", implementation=1, specification={"fps": 10, "fit": "crop"})


def kl(
    *,
    specification: Mapping[str, Canonical] | None = None,
    implementation: int = 1,
    parents: tuple[Recipe, ...] = (CLIP,),
) -> Recipe:
    return Recipe(
        field="kl.video",
        implementation=implementation,
        specification=dict(specification or {"kl_vae": {"precision": "fp32", "weights": "ab"}}),
        parents=parents,
    )


def stored(recipe: Recipe) -> dict[str, bytes]:
    return {ancestor.digest: ancestor.to_json() for ancestor in recipe.with_ancestors()}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def test_canonical_json_is_sorted_compact_utf8() -> None:
    value = {"b": [1, True, None, (2,)], "a": "é\n", "Z": {}}

    assert canonical_json(value) == b'{"Z":{},"a":"\xc3\xa9\\n","b":[1,true,null,[2]]}'


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.1, r"\$ is the float 0\.1"),
        ({"a": [1, {"b": 2.0}]}, r"\$\.a\[1\]\.b is the float 2\.0"),
        (float("nan"), "float nan"),
        ({"a": {1: "x"}}, r"\$\.a has the key 1"),
        ({1.5: "x"}, r"\$ has the key 1\.5"),
        ({"a": {1, 2}}, "set"),
        (b"x", "bytes"),
    ],
)
def test_what_has_no_one_text_is_refused(value: object, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        canonical_json(value)


def test_golden_recipes_keep_their_bytes_and_digests() -> None:
    """A change here makes every cache stale: raise ``implementation`` instead."""
    assert CLIP.to_json() == (
        b'{"field":"clip.video","implementation":1,"parents":{},'
        b'"specification":{"fit":"crop","fps":10}}'
    )
    assert CLIP.digest == "e67382b36e6e0b8a6c40f3f92ccc6581c5ab887afe365d801afea67e4986a617"
    assert kl().to_json() == (
        b'{"field":"kl.video","implementation":1,"parents":{"clip.video":"e67382b36e6e0b8a6c40f3f92ccc6581c5ab887afe365d801afea67e4986a617"},'
        b'"specification":{"kl_vae":{"precision":"fp32","weights":"ab"}}}'
    )
    assert kl().digest == "88dad0518b4922d0a51cb9e39bc89c683a6ce12f6d9b1e36b64189454a63029e"


def test_equal_recipes_have_equal_digests() -> None:
    assert kl().digest == kl().digest
    assert kl(specification={"a": 1, "b": 2}).digest == kl(specification={"b": 2, "a": 1}).digest


@pytest.mark.parametrize(
    "other",
    [
        kl(implementation=2),
        kl(specification={"kl_vae": {"precision": "bf16", "weights": "ab"}}),
        kl(specification={"kl_vae": {"precision": "fp32", "weights": "ab", "more": None}}),
        kl(parents=()),
        kl(parents=(Recipe(field="clip.video", implementation=2, specification={}),)),
        kl(parents=(CLIP, Recipe(field="clip.audio", implementation=1, specification={}))),
        Recipe(
            field="kl.audio",
            implementation=1,
            specification=kl().specification,
            parents=kl().parents,
        ),
    ],
)
def test_every_other_ingredient_gives_another_digest(other: Recipe) -> None:
    assert other.digest != kl().digest


def test_a_grandparents_change_reaches_the_digest() -> None:
    def perceptual(fps: int) -> Recipe:
        clip = Recipe(field="clip.video", implementation=1, specification={"fps": fps})
        parent = kl(parents=(clip,))
        return Recipe(
            field="perceptual.video", implementation=1, specification={}, parents=(parent,)
        )

    assert perceptual(4).digest != perceptual(10).digest


def test_parents_in_any_order_make_the_same_recipe() -> None:
    sound = Recipe(field="clip.audio", implementation=1, specification={})

    assert kl(parents=(CLIP, sound)) == kl(parents=(sound, CLIP))


def test_ancestors_come_parents_first() -> None:
    assert [recipe.field for recipe in kl().with_ancestors()] == ["clip.video", "kl.video"]


def test_a_recipe_is_read_back_as_it_was() -> None:
    sound = Recipe(field="clip.audio", implementation=3, specification={"rate": "native"})
    recipe = kl(parents=(CLIP, sound))

    assert recipe_from_json(recipe.to_json(), stored(recipe)) == recipe


@given(specification=st.dictionaries(st.text(), values), implementation=st.integers())
def test_any_recipe_is_read_back_as_it_was(
    specification: dict[str, Any], implementation: int
) -> None:
    recipe = kl(specification=specification or {"": None}, implementation=implementation)

    assert recipe_from_json(recipe.to_json(), stored(recipe)) == recipe


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"field":"kl.video","implementation":1,"parents":[],"specification":{}}',
        b'{"field":"kl.video","implementation":1,"parents":{"a":"b"},"specification":{}}',
        b'{"field":"kl.video","implementation":1,"parents":{"a":[]},"specification":{}}',
        b'{"field":"kl.video","implementation":1,"parents":{},"specification":{"a":0.5}}',
        b'{"field":"kl.video","implementation":1,"parents":{},"specification":[]}',
        b'{"field":"kl.video","implementation":1,"parents":{},"specification":{}} ',
        b'{"field":"kl.video","implementation":1,"more":1,"parents":{},"specification":{}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_anything_but_a_recipe_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        recipe_from_json(content, {})


def test_differences_name_the_path_and_both_values() -> None:
    wanted = kl(
        specification={"kl_vae": {"precision": "bf16", "weights": "ab"}},
        implementation=2,
        parents=(
            Recipe(field="clip.video", implementation=1, specification={"fps": 4, "fit": "crop"}),
        ),
    )

    assert recipe_differences(kl(), wanted) == (
        "kl.video kl_vae precision: fp32 -> bf16",
        "kl.video implementation: 1 -> 2",
        "clip.video fps: 10 -> 4",
    )


def test_equal_recipes_do_not_differ() -> None:
    assert recipe_differences(kl(), kl()) == ()


def test_recipes_with_other_parents_differ_in_them() -> None:
    sound = Recipe(field="clip.audio", implementation=1, specification={})

    assert recipe_differences(kl(), kl(parents=(CLIP, sound))) == (
        "kl.video parent clip.audio: not made from it -> made from it",
    )
    assert recipe_differences(kl(), kl(parents=())) == (
        "kl.video parent clip.video: made from it -> not",
    )


def test_an_absent_key_differs_from_null_and_false_from_zero() -> None:
    assert recipe_differences(
        kl(specification={"a": 0, "b": None}), kl(specification={"a": False, "c": None})
    ) == (
        "kl.video a: 0 -> False",
        "kl.video b: None -> absent",
        "kl.video c: absent -> None",
    )


@given(found=st.dictionaries(st.text(), values), wanted=st.dictionaries(st.text(), values))
def test_recipes_with_other_digests_always_name_a_difference(
    found: dict[str, Any], wanted: dict[str, Any]
) -> None:
    a, b = (
        Recipe(field="kl.video", implementation=1, specification=specification)
        for specification in (found, wanted)
    )

    assert (a.digest == b.digest) == (recipe_differences(a, b) == ())


def test_long_values_are_shortened() -> None:
    assert recipe_differences(
        kl(specification={"weights": "a" * 64}), kl(specification={"weights": "b" * 64})
    ) == ("kl.video weights: aaaaaaaaaaaa... -> bbbbbbbbbbbb...",)


@given(value=st.dictionaries(st.text().filter(lambda key: key != "seal"), values))
def test_a_sealed_object_opens_as_it_was(value: dict[str, Any]) -> None:
    assert open_sealed_json(sealed_json(value)) == value


def test_any_changed_byte_breaks_the_seal() -> None:
    content = sealed_json({"commit": 12, "recipes": {"kl.video": "ab"}})

    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(ValueError, match=r"."):
                open_sealed_json(bytes(flipped))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"1",
        b"{}",
        b'{"seal":1}',
        b'{"a":1.5,"seal":""}',
        b'{"a":NaN,"seal":""}',
        b'{"a":"\\ud800","seal":""}',
        sealed_json({"a": 1}) + b"\n",
        b"[" * 100_000,
        b'{"seal":"","a":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_anything_but_a_sealed_object_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        open_sealed_json(content)


def test_only_a_sha256_is_a_digest() -> None:
    assert is_sha256_hex(sha256_hex(b""))
    for other in ("", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n", None, 5):
        assert not is_sha256_hex(other)
