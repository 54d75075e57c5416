"""Sources are held out as people say, or by what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, require_ref, write_ref
from latents.cache.rows import AnnotationRow, rows_to_table
from latents.cache.source_split import SPLITS, split_of
from latents.cache.splits import clips_of_split
from latents.errors import CacheError
from latents.recipe import sha256_hex
from latents.testing import make_cache, perceptual_clips, perceptual_recipes

SOURCES = [sha256_hex(f"{number}".encode()) for number in range(1000)]


def held_out(share: float) -> set[str]:
    return {s for s in SOURCES if split_of(s, None, validation_share=share) == "validation"}


def test_about_a_share_is_held_out() -> None:
    assert 70 <= len(held_out(0.1)) <= 130  # three standard deviations
    assert held_out(0.0) == set()
    assert held_out(1.0) == set(SOURCES)


def test_a_larger_share_holds_out_the_same_and_more() -> None:
    assert held_out(0.1) < held_out(0.2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_what_people_say_counts(split: str) -> None:
    assert {split_of(source, split, validation_share=0.5) for source in SOURCES} == {split}


def test_a_split_that_is_none_is_refused() -> None:
    with pytest.raises(CacheError, match="annotated with split 'training'; wanted one of train"):
        split_of(SOURCES[0], "training", validation_share=0.1)


def test_clips_of_a_level_go_where_their_source_goes(tmp_path: Path) -> None:
    clips = perceptual_clips(6)
    layout = make_cache(tmp_path, clips=clips, recipes=perceptual_recipes())
    said = {0: "validation", 1: "test", 2: "train"}
    rows = [
        AnnotationRow(source=clips[number].key.source_digest, label=None, caption=None, split=split)
        for number, split in said.items()
    ]
    CommitLog(layout).append({"annotations": rows_to_table("annotations", rows)}, {})
    move_ref_to_head(layout)
    level = open_cache(layout.url, level="perceptual")

    found = {
        split: clips_of_split(level, split, validation_share=0.0).clip_keys() for split in SPLITS
    }

    assert found["validation"] == [str(clips[0].key)]
    assert found["test"] == [str(clips[1].key)]
    assert found["train"] == sorted(str(clip.key) for clip in clips[2:])


def test_a_level_without_clips_has_none_of_any_split(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, clips=[], recipes=perceptual_recipes())
    recipes = {field: recipe.digest for field, recipe in perceptual_recipes().items()}
    write_ref(layout, "current", Ref(commit=-1, recipes=recipes))
    level = open_cache(layout.url, level="perceptual")

    assert [len(clips_of_split(level, split, validation_share=0.1)) for split in SPLITS] == [0] * 3


def move_ref_to_head(layout: CacheLayout) -> None:
    recipes = require_ref(layout, "current").recipes
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=recipes))
