"""Clips whose sound is quieter than wanted are left out, whatever else is recorded of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latents.cache.audible import audible_clips, loudness_of
from latents.cache.reader import CachedClip, ClipRows, open_cache
from latents.cache.rows import rows_to_table
from latents.clip import loudness_dbfs
from latents.store.protocol import StoredTensor
from latents.testing import fake_clips, fake_latent_row, fake_recipes, make_cache

RECIPES = fake_recipes()
STORED = StoredTensor(
    shard="", offset=0, dtype="float16", shape=(8, 4, 2, 2), digest="", crc32c=(0,) * 8
)


def clips_as_loud_as(loudness: Sequence[float | None], *, pictures: float = 0.0) -> ClipRows:
    """Clips whose sound's rows say this; those of their pictures say something else."""
    clips = fake_clips(len(loudness))
    said = {"kl.video": [pictures] * len(clips), "kl.audio": loudness}
    return ClipRows(
        {
            field: rows_to_table(
                "latents",
                (
                    replace(fake_latent_row(clip, field, recipe, STORED), loudness_dbfs=one)
                    for clip, one in zip(clips, said[field], strict=True)
                ),
            )
            for field, recipe in RECIPES.items()
        }
    )


def kept(loudness: Sequence[float | None], *, from_dbfs: float) -> list[int]:
    """Which of these clips are audible."""
    clips = clips_as_loud_as(loudness)
    found = audible_clips(clips, level="kl", from_dbfs=from_dbfs).clip_keys()
    return [index for index, key in enumerate(clips.clip_keys()) if key in found]


def test_quieter_clips_are_left_out() -> None:
    assert kept([-20.0, -95.0, -79.9, -120.0], from_dbfs=-80) == [0, 2]


def test_sound_of_just_that_loudness_is_kept() -> None:
    assert kept([-80.0, math.nextafter(-80, -math.inf)], from_dbfs=-80) == [0]


def test_clips_of_unknown_loudness_are_kept() -> None:
    assert kept([None, -120.0, None], from_dbfs=-80) == [0, 2]


def test_missing_sound_is_the_quietest_there_is() -> None:
    missing = loudness_dbfs(np.zeros((1, 32000), np.float32))
    assert kept([missing, -119.0], from_dbfs=-119) == [1]
    assert kept([missing, -119.0], from_dbfs=-120) == [0, 1]


def test_minus_infinity_keeps_all_clips_as_they_are() -> None:
    clips = clips_as_loud_as([-20.0, -120.0, None])
    assert audible_clips(clips, level="kl", from_dbfs=-math.inf) is clips


def test_no_clip_may_be_left() -> None:
    none_left = audible_clips(clips_as_loud_as([-120.0] * 3), level="kl", from_dbfs=-80)
    assert (len(none_left), none_left.num_windows) == (0, 0)
    assert len(audible_clips(none_left, level="kl", from_dbfs=-80)) == 0


def test_rows_of_the_sound_say_how_loud_a_clip_is() -> None:
    clips = clips_as_loud_as([-20.0], pictures=-120.0)
    assert loudness_of(clips, level="kl").to_pylist() == [-20.0]
    assert len(audible_clips(clips, level="kl", from_dbfs=-80)) == 1


@pytest.mark.parametrize("field", list(RECIPES))
def test_clips_keep_their_rows_and_their_order(field: str) -> None:
    clips = clips_as_loud_as([-20.0, -95.0, None, -30.0])
    rows = clips.rows_of(field)

    found = audible_clips(clips, level="kl", from_dbfs=-80)

    assert found.rows_of(field).equals(pa.concat_tables([rows.slice(0, 1), rows.slice(2)]))


def test_clips_of_an_opened_cache_are_chosen(tmp_path: Path) -> None:
    level = open_cache(make_cache(tmp_path, num_clips=3).url, level="kl")
    assert len(audible_clips(level.clips, level="kl", from_dbfs=-20)) == 3
    assert len(audible_clips(level.clips, level="kl", from_dbfs=-19)) == 0


class ColumnsOnly(ClipRows):
    """Clips of which none may become an object: of a million that takes minutes."""

    def _between(self, start: int, stop: int) -> Iterator[CachedClip]:
        raise AssertionError(f"clips {start} to {stop} were made objects")


def test_no_clip_is_looked_at_one_by_one() -> None:
    clips = clips_as_loud_as([-20.0, -95.0, None])
    columns = ColumnsOnly({field: clips.rows_of(field) for field in RECIPES})
    assert len(audible_clips(columns, level="kl", from_dbfs=-80)) == 2
