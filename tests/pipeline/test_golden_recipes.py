"""Settings keep their identity, so that caches made before are found again and not made anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae import EncoderIdentity, load_kl_vae
from latents.recipe import Recipe, canonical_json, recipe_differences, sha256_hex
from pipeline.recipes import Encoders
from pipeline.scene_clips import SceneRef, scene_digest
from scripts.golden_observations import GOLDEN_FOLDER, Identity, identity_of

RECORDED: dict[str, Any] = json.loads((GOLDEN_FOLDER / "recipes.json").read_bytes())
CASES: dict[str, dict[str, Any]] = RECORDED["cases"]
MODAL = ModalIdentity(
    video=ModalEncoderIdentity.from_specification(RECORDED["encoders"]["video"]),
    audio=ModalEncoderIdentity.from_specification(RECORDED["encoders"]["audio"]),
)
ENCODERS = Encoders(
    kl_vae=EncoderIdentity.from_specification(RECORDED["encoders"]["kl_vae"]), modal=MODAL
)
RECORD_ANEW = "say so in CHANGELOG.md, and run scripts/make_golden.py. If it is not, undo it."


def identity(case: str) -> Identity:
    settings = CASES[case]
    return identity_of(ENCODERS, presets=settings["presets"], overrides=settings["overrides"])


def recorded_recipe(digest: str) -> Recipe:
    parts = RECORDED["recipes"][digest]
    return Recipe(
        field=parts["field"],
        implementation=parts["implementation"],
        specification=parts["specification"],
        parents=tuple(recorded_recipe(parent) for parent in parts["parents"].values()),
    )


def check_recipe(found: Recipe, case: str) -> None:
    """Fails unless a recipe has the digest that was recorded for its field."""
    digest = CASES[case]["recipes"][found.field]
    if found.digest == digest:
        return
    differences = recipe_differences(recorded_recipe(digest), found) or (
        "none: the same parts are written as other JSON, or hashed otherwise",
    )
    raise AssertionError(
        f"{found.field} ({case}): the recipe is not the one recorded, so every cache that has this "
        "field becomes stale and must be made anew.\nRecorded -> found: "
        f"{'; '.join(differences)}.\nIf that is meant because the field's numbers change, raise "
        f"its implementation in pipeline/recipes.py, {RECORD_ANEW}"
    )


@pytest.mark.parametrize("case", CASES)
def test_every_field_has_the_recipe_recorded(case: str) -> None:
    recipes = identity(case).recipes

    for field in CASES[case]["recipes"].keys() & recipes.keys():
        check_recipe(recipes[field], case)


@pytest.mark.parametrize("case", CASES)
def test_every_field_is_recorded(case: str) -> None:
    found, recorded = set(identity(case).recipes), set(CASES[case]["recipes"])

    assert found == recorded, (
        f"new fields {sorted(found - recorded)}, gone {sorted(recorded - found)}: run "
        "scripts/make_golden.py to record them"
    )


@pytest.mark.parametrize("case", CASES)
def test_sources_already_cut_and_judged_are_not_opened_again(case: str) -> None:
    found, recorded = identity(case), CASES[case]

    assert found.segmentation == recorded["segmentation"], (
        "segmentation_digest changed: no cache knows any more how many segments its sources have, "
        f"and all are opened again. If that is meant, {RECORD_ANEW}"
    )
    assert found.admission == recorded["admission"], (
        "admission_digest changed: whatever was rejected in decoding is opened again. If that is "
        f"meant, {RECORD_ANEW}"
    )


def test_the_bundled_encoder_keeps_its_identity() -> None:
    # An upgrade of diffusers could describe the same model in other words.
    assert load_kl_vae("tiny").identity.specification() == RECORDED["tiny"], (
        "the bundled KL-VAE is known by another name, so latents made with it are stale. If it was "
        f"trained anew, {RECORD_ANEW}"
    )


def test_a_scene_keeps_its_identity() -> None:
    scene = RECORDED["scene"]
    ref = SceneRef(seed=scene["seed"], index=scene["index"], seconds=scene["seconds"])

    assert scene_digest(ref) == scene["digest"], (
        "scenes are other sources than before, and all are encoded anew. If they are drawn "
        f"differently on purpose, {RECORD_ANEW}"
    )


def test_canonical_json_keeps_its_bytes() -> None:
    recorded = RECORDED["canonical_json"]
    found = canonical_json(recorded["value"])

    assert found.decode() == recorded["text"], (
        "canonical JSON is written otherwise: every recipe, row and commit gets another digest, "
        "and no existing cache can be read. Undo it, or raise the format version of the cache"
    )
    assert sha256_hex(found) == recorded["sha256"]


def test_what_is_recorded_hashes_to_its_digest() -> None:
    hashed = {sha256_hex(canonical_json(parts)) for parts in RECORDED["recipes"].values()}

    assert hashed == set(RECORDED["recipes"])


# The check itself: that it can fail, and what it says.


def test_a_changed_implementation_is_named_with_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.recipes.VIDEO_IMPLEMENTATION", 99)
    recipes = identity("default").recipes

    check_recipe(recipes["clip.audio"], "default")
    for field in ("clip.video", "kl.video"):
        with pytest.raises(
            AssertionError, match=r"clip\.video implementation: \d+ -> 99"
        ) as caught:
            check_recipe(recipes[field], "default")
        assert "becomes stale" in str(caught.value)
        assert "run scripts/make_golden.py" in str(caught.value)


def test_another_digest_of_the_same_parts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latents.recipe.sha256_hex", lambda content: sha256_hex(content + b"\n"))

    with pytest.raises(AssertionError, match="the same parts are written as other JSON"):
        check_recipe(identity("default").recipes["clip.video"], "default")
