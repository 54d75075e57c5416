"""Reading: every slice is checked, and latents of another recipe are refused on opening."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.reader import CachedLevel, open_cache, read_tensor
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import LatentRow, TombstoneRow, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.errors import CacheError, DamagedError, StaleFieldError
from latents.testing import FakeClip, commit_clips, fake_clips, fake_recipes, make_cache

SLICE_BYTES = 4 * 2 * 2 * 2
"""A frame or window of made-up moments: 16 float16 values."""


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return make_cache(tmp_path / "cache", num_clips=3)


@pytest.fixture
def level(layout: CacheLayout) -> CachedLevel:
    return open_cache(layout.url, level="kl")


def by_clip(clips: list[FakeClip]) -> dict[str, FakeClip]:
    return {str(clip.key): clip for clip in clips}


def shard_path(layout: CacheLayout, row: LatentRow) -> Path:
    return Path(layout.url, layout.shard(row.shard))


def move_current(layout: CacheLayout) -> None:
    """Points ``current`` at the latest commit."""
    digests = {field: recipe.digest for field, recipe in fake_recipes().items()}
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=digests))


def drop(layout: CacheLayout, clip: FakeClip) -> None:
    row = TombstoneRow(reason="dropped", uri=None, source=clip.key.source_digest, clip=None)
    CommitLog(layout).append({"tombstones": rows_to_table("tombstones", [row])}, {})


def change(path: Path, edit: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.chmod(0o644)
    path.write_bytes(content)


def flip(path: Path, offset: int) -> None:
    def edit(content: bytearray) -> None:
        content[offset] ^= 0x10

    change(path, edit)


def cut(path: Path, size: int) -> None:
    def edit(content: bytearray) -> None:
        del content[size:]

    change(path, edit)


def test_every_tensor_is_read_as_it_was_written(level: CachedLevel) -> None:
    clips = by_clip(fake_clips(3))

    assert [clip.clip for clip in level] == sorted(clips)
    for clip in level:
        for field, tensor in clips[clip.clip].tensors.items():
            read = level.read(clip, field)
            assert read.dtype == tensor.dtype
            np.testing.assert_array_equal(read, tensor)


def test_slices_are_those_of_the_whole_tensor(level: CachedLevel) -> None:
    clip = level.clips[1]
    whole = level.read(clip, "kl.video")

    for start in range(9):
        np.testing.assert_array_equal(level.read(clip, "kl.video", start), whole[start:])
        for stop in range(start, 9):
            part = level.read(clip, "kl.video", start, stop)
            np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 9), (5, 4), (9, None)])
def test_slices_that_are_not_there_are_refused(
    level: CachedLevel, start: int, stop: int | None
) -> None:
    with pytest.raises(ValueError, match=r"no slices .* in a tensor of shape \(8, 4, 2, 2\)"):
        level.read(level.clips[0], "kl.video", start, stop)


def test_what_is_read_is_the_callers_own(level: CachedLevel) -> None:
    clip = level.clips[0]
    first = level.read(clip, "kl.video")
    first[:] = 0

    assert level.read(clip, "kl.video").any()


def test_clips_can_be_counted_indexed_sliced_and_gone_through_again(level: CachedLevel) -> None:
    assert len(level) == len(level.clips) == 3
    assert [level.clips[i] for i in range(3)] == list(level.clips) == list(level)
    assert level.clips[-1] == level.clips[2]
    assert list(level.clips[1:]) == [level.clips[1], level.clips[2]]
    with pytest.raises(IndexError):
        level.clips[3]


def test_windows_are_counted(level: CachedLevel) -> None:
    assert [clip.num_windows for clip in level] == [5, 5, 5]
    assert level.num_windows == 15


def test_a_clip_that_lacks_a_field_is_not_in_the_level(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", num_clips=2)
    extra = fake_clips(3)[2]
    only_video = FakeClip(key=extra.key, tensors={"kl.video": extra.tensors["kl.video"]})
    commit_clips(layout, [only_video], fake_recipes())
    move_current(layout)

    level = open_cache(layout.url, level="kl")

    assert [clip.clip for clip in level] == sorted(by_clip(fake_clips(2)))


def test_a_level_is_read_at_the_commit_of_its_ref(layout: CacheLayout) -> None:
    commit_clips(layout, fake_clips(9)[3:], fake_recipes())

    assert len(open_cache(layout.url, level="kl")) == 3


def test_a_clip_that_left_is_not_in_a_level_opened_at_a_later_commit(layout: CacheLayout) -> None:
    clips = fake_clips(3)
    drop(layout, clips[1])

    assert [clip.clip for clip in open_cache(layout.url, level="kl")] == sorted(by_clip(clips))
    move_current(layout)
    left = sorted(by_clip([clips[0], clips[2]]))
    assert [clip.clip for clip in open_cache(layout.url, level="kl")] == left


def test_one_that_left_can_still_be_read_where_an_earlier_commit_is_open(
    layout: CacheLayout, level: CachedLevel
) -> None:
    (clip, *_) = fake_clips(3)
    drop(layout, clip)
    move_current(layout)
    opened = level.clips.find(str(clip.key))

    assert opened is not None
    np.testing.assert_array_equal(level.read(opened, "kl.video"), clip.tensors["kl.video"])


def test_a_level_can_be_opened_where_its_clips_lie_in_other_shards_now(
    layout: CacheLayout,
) -> None:
    clips = fake_clips(3)
    old = {row["shard"] for row in load_snapshot(layout).index.to_pylist()}
    again = create_cache(Path(layout.url).parent / "again")
    commit_clips(again, clips, fake_recipes())
    for file in again.storage.list("shards"):
        layout.storage.create(file.name, again.storage.read(file.name))
    rows = [load_snapshot(again).rows_of(recipe.digest) for recipe in fake_recipes().values()]
    moved = [
        TombstoneRow(reason="moved", uri=None, source=None, clip=None, shard=shard) for shard in old
    ]
    CommitLog(layout).append(
        {"latents": pa.concat_tables(rows), "tombstones": rows_to_table("tombstones", moved)}, {}
    )
    move_current(layout)
    for shard in old:
        layout.storage.delete(layout.shard(shard))

    level = open_cache(layout.url, level="kl")

    for clip in level:
        read = level.read(clip, "kl.audio")
        np.testing.assert_array_equal(read, by_clip(clips)[clip.clip].tensors["kl.audio"])


def test_a_clip_is_found_by_its_key(level: CachedLevel) -> None:
    assert level.clips.clip_keys() == sorted(by_clip(fake_clips(3)))
    for clip in level:
        assert level.clips.find(clip.clip) == clip
    assert level.clips.find("none") is None


def test_a_level_without_clips_is_empty(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", num_clips=0)

    level = open_cache(layout.url, level="kl")

    assert list(level) == []
    assert (len(level), level.num_windows) == (0, 0)


@pytest.mark.parametrize("index", [0, 3, 7])
def test_a_damaged_byte_is_found_in_its_slice(
    layout: CacheLayout, level: CachedLevel, index: int
) -> None:
    row = level.clips[0].rows["kl.video"]
    flip(shard_path(layout, row), row.offset + index * SLICE_BYTES + 5)

    with pytest.raises(DamagedError) as caught:
        read_tensor(layout, row)
    assert caught.value.path == f"shards/{row.shard}"
    assert caught.value.offset == row.offset + index * SLICE_BYTES
    assert f"kl.video of clip {row.clip}, slice {index}, fails" in caught.value.problem


def test_slices_beside_the_damage_can_still_be_read(
    layout: CacheLayout, level: CachedLevel
) -> None:
    clip = level.clips[0]
    row = clip.rows["kl.video"]
    whole = level.read(clip, "kl.video")
    flip(shard_path(layout, row), row.offset + 3 * SLICE_BYTES)

    np.testing.assert_array_equal(level.read(clip, "kl.video", 0, 3), whole[:3])
    np.testing.assert_array_equal(level.read(clip, "kl.video", 4, 8), whole[4:])


def test_a_short_shard_is_damaged_where_it_ends(layout: CacheLayout, level: CachedLevel) -> None:
    row = level.clips[0].rows["kl.video"]
    end = row.offset + 2 * SLICE_BYTES + 7
    cut(shard_path(layout, row), end)

    assert read_tensor(layout, row, 0, 2).shape == (2, 4, 2, 2)
    with pytest.raises(DamagedError) as caught:
        read_tensor(layout, row)
    assert (caught.value.path, caught.value.offset) == (f"shards/{row.shard}", end)
    assert caught.value.problem == f"ends {6 * SLICE_BYTES - 7} bytes too early"


def test_a_missing_shard_is_damage(layout: CacheLayout, level: CachedLevel) -> None:
    row = level.clips[0].rows["kl.video"]
    (shard_path(layout, row)).unlink()

    with pytest.raises(DamagedError, match="the shard is missing") as caught:
        read_tensor(layout, row)
    assert caught.value.path == f"shards/{row.shard}"


def test_a_folder_in_the_place_of_a_shard_is_damage(
    layout: CacheLayout, level: CachedLevel
) -> None:
    row = level.clips[0].rows["kl.video"]
    (shard_path(layout, row)).unlink()
    (shard_path(layout, row)).mkdir()

    with pytest.raises(DamagedError, match="cannot be read"):
        read_tensor(layout, row)


def test_a_row_that_asks_for_more_than_there_can_be_is_damage(
    layout: CacheLayout, level: CachedLevel
) -> None:
    row = replace(level.clips[0].rows["kl.video"], shape=[8, 1 << 60])

    with pytest.raises(DamagedError, match="bytes too early"):
        read_tensor(layout, row)


def test_the_recipes_that_made_it_open_a_cache(layout: CacheLayout) -> None:
    assert len(open_cache(layout.url, level="kl", recipes=fake_recipes())) == 3


def test_latents_of_another_encoder_are_refused_on_opening(layout: CacheLayout) -> None:
    with pytest.raises(StaleFieldError) as caught:
        open_cache(layout.url, level="kl", recipes=fake_recipes(weights="new"))

    error = caught.value
    assert error.field in ("kl.video", "kl.audio")
    assert error.found == fake_recipes()[error.field].digest
    assert error.wanted == fake_recipes(weights="new")[error.field].digest
    assert error.differences == (f"{error.field} kl_vae weights: tiny -> new",)
    assert "kl_vae weights: tiny -> new" in str(error)


def test_a_recipe_above_that_differs_is_named(layout: CacheLayout) -> None:
    recipes = fake_recipes()
    clip = replace(recipes["kl.video"].parents[0], specification={"fps": 4})
    wanted = {"kl.video": replace(recipes["kl.video"], parents=(clip,))}

    with pytest.raises(StaleFieldError) as caught:
        open_cache(layout.url, level="kl", recipes=wanted)
    assert caught.value.differences == ("clip.video fps: 10 -> 4",)


def test_a_level_that_was_not_kept_is_refused(layout: CacheLayout) -> None:
    with pytest.raises(
        CacheError,
        match=r"'current' has no clip\.video or clip\.audio; it has kl\.audio, kl\.video\. "
        "Ingest with `--levels clip` to add it",
    ):
        open_cache(layout.url, level="clip")


def test_a_level_that_does_not_exist_is_refused(layout: CacheLayout) -> None:
    with pytest.raises(
        CacheError, match="there is no level 'pixels'; there are clip, kl, perceptual"
    ):
        open_cache(layout.url, level="pixels")  # type: ignore[arg-type]


def test_a_ref_that_is_not_there_is_refused(layout: CacheLayout) -> None:
    with pytest.raises(CacheError, match="has no ref 'best'"):
        open_cache(layout.url, level="kl", ref="best")


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is not a cache"):
        open_cache(tmp_path, level="kl")
