"""Sources are held out as people say, or by what they are."""

from __future__ import annotations

import pytest

from latents.cache.splits import split_of
from latents.errors import CacheError
from latents.recipe import sha256_hex

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
