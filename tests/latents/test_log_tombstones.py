"""What left while a driver worked does not come back, and nothing else goes with it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.rows import (
    TombstoneReason,
)
from latents.cache.snapshot import load_snapshot
from latents.testing import (
    FakeClip,
    fake_clips,
    fake_source_row,
)
from tests.latents.log_rows import (
    OTHER_RECIPE,
    RECIPE,
    RUN,
    Tables,
    append,
    appended,
    keys,
    latents,
    living_clips,
    sources,
    tombstone,
    tombstones,
)


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


class TestWhatLeftMeanwhile:
    """Rows that a driver holds while another one ends their clip or source."""

    @pytest.mark.parametrize("reason", ["changed", "pruned", "dropped"])
    @pytest.mark.parametrize("whole_source", [False, True])
    def test_a_clip_that_left_is_not_revived_by_rows_that_waited(
        self, layout: CacheLayout, reason: TombstoneReason, whole_source: bool
    ) -> None:
        a, b = fake_clips(2)
        appended(layout, a)
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstones(reason, a, whole_source=whole_source)})

        waiting = pa.concat_tables([latents(a, recipe=OTHER_RECIPE), latents(b)])
        driver.append({"latents": waiting}, RUN)

        snapshot = load_snapshot(layout)
        assert snapshot.index["clip"].to_pylist() == keys(b)

    def test_nor_by_rows_of_a_later_commit_of_that_driver(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a)
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstones("dropped", a)})
        driver.append({"latents": latents(b)}, RUN)

        assert driver.append({"latents": latents(a, recipe=OTHER_RECIPE)}, RUN) is None

    def test_nor_is_the_record_of_its_source(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, *fake_clips(3)[2:])
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstones("dropped", a, whole_source=True)})

        driver.append({"sources": sources(a, b)}, RUN)

        assert load_snapshot(layout).sources["digest"].to_pylist() == [b.key.source_digest]

    def test_other_clips_of_the_source_may_still_come(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, *fake_clips(3)[2:])
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstones("pruned", a)})

        driver.append({"latents": latents(b), "sources": sources(a)}, RUN)

        assert str(b.key) in living_clips(layout)
        assert load_snapshot(layout).sources.num_rows == 1

    def test_what_left_before_the_drivers_snapshot_may_come_anew(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        append(layout, {"tombstones": tombstones("changed", clip)})

        append(layout, {"latents": latents(clip)}, seen=1)

        assert living_clips(layout) == keys(clip)

    @pytest.mark.parametrize("beside", [True, False])
    def test_what_was_readmitted_may_come_anew(self, layout: CacheLayout, beside: bool) -> None:
        (clip,) = fake_clips(1)
        append(layout, {"tombstones": tombstones("dropped", clip, whole_source=True)})
        driver = CommitLog(layout)
        again: Tables = {"tombstones": tombstones("readmitted", clip, whole_source=True)}
        anew: Tables = {"latents": latents(clip), "sources": sources(clip)}

        for tables in [again | anew] if beside else [again, anew]:
            driver.append(tables, RUN)

        assert living_clips(layout) == keys(clip)
        assert load_snapshot(layout).sources.num_rows == 1

    def test_what_came_back_has_not_left(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstones("changed", clip, whole_source=True)})
        append(layout, {"latents": latents(clip)}, seen=1)

        driver.append({"latents": latents(clip, recipe=OTHER_RECIPE)}, RUN)

        assert load_snapshot(layout).index.num_rows == 2

    @pytest.mark.parametrize(
        ("reason", "stays"), [("changed", True), ("pruned", True), ("dropped", False)]
    )
    def test_a_source_that_was_found_again_meanwhile_has_not_left(
        self, layout: CacheLayout, reason: TombstoneReason, stays: bool
    ) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        driver = CommitLog(layout, seen=0)
        append(layout, {"sources": sources(clip)}, seen=0)

        driver.append({"tombstones": tombstones(reason, clip, whole_source=True)}, RUN)
        driver.append({"tombstones": tombstone(reason, uri=fake_source_row(clip).uri)}, RUN)

        assert living_clips(layout) == (keys(clip) if stays else [])
        assert load_snapshot(layout).sources.num_rows == (1 if stays else 0)

    def test_a_clip_may_end_and_come_anew_in_one_commit(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        mended: Tables = {
            "tombstones": tombstones("changed", clip),
            "latents": latents(clip, shard="1" * 64),
        }

        for _ in range(2):  # the second is another driver that had the same in mind
            append(layout, mended, seen=0)

        rows = load_snapshot(layout).rows_of(RECIPE.digest)
        assert rows["shard"].to_pylist() == [f"{'1' * 64}.tar"]

    def test_a_uri_that_left_ends_no_latents(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        append(layout, {"tombstones": tombstone("pruned", uri=fake_source_row(clip).uri)})

        append(layout, {"latents": latents(clip)})

        assert living_clips(layout) == keys(clip)


class TestMoves:
    """Tensors written to another shard: a tombstone and the new rows in one commit."""

    @staticmethod
    def move(*clips: FakeClip, shard: str, whole_source: bool = False) -> Tables:
        return {
            "tombstones": tombstones("moved", *clips, whole_source=whole_source),
            "latents": latents(*clips, shard=shard * 64),
        }

    @staticmethod
    def shards(layout: CacheLayout) -> list[str]:
        shards = load_snapshot(layout).rows_of(RECIPE.digest)["shard"].to_pylist()
        return [shard[0] for shard in shards]

    @pytest.mark.parametrize("seen", [0, -1])
    @pytest.mark.parametrize("whole_source", [False, True])
    def test_a_move_lets_its_own_rows_through(
        self, layout: CacheLayout, seen: int, whole_source: bool
    ) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        append(layout, self.move(clip, shard="1", whole_source=whole_source), seen=seen)

        assert self.shards(layout) == ["1"]
        assert load_snapshot(layout).index.num_rows == 1

    def test_a_clip_that_was_moved_meanwhile_is_there_already(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        append(layout, self.move(clip, shard="1"), seen=0)

        assert append(layout, {"latents": latents(clip)}, seen=0) is None

    def test_of_two_moves_none_loses_the_clip(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        for shard in "12":
            append(layout, self.move(clip, shard=shard), seen=0)

        assert self.shards(layout) == ["2"]

    def test_a_move_revives_no_clip_that_left_meanwhile(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a, b)
        append(layout, {"tombstones": tombstones("dropped", a)})

        append(layout, self.move(a, b, shard="1"), seen=0)

        assert living_clips(layout) == keys(b)
        assert self.shards(layout) == ["1"]

    @pytest.mark.parametrize("whole_source", [False, True])
    def test_a_move_ends_no_latents_that_came_meanwhile(
        self, layout: CacheLayout, whole_source: bool
    ) -> None:
        a, b = fake_clips(2)
        appended(layout, a, b)
        append(layout, {"latents": latents(a, recipe=OTHER_RECIPE)})

        append(layout, self.move(a, b, shard="1", whole_source=whole_source), seen=0)

        snapshot = load_snapshot(layout)
        assert snapshot.rows_of(OTHER_RECIPE.digest)["clip"].to_pylist() == keys(a)
        moved = {str(a.key): f"{'0' * 64}.tar", str(b.key): f"{'1' * 64}.tar"}
        rows = snapshot.rows_of(RECIPE.digest)
        found = dict(zip(rows["clip"].to_pylist(), rows["shard"].to_pylist(), strict=True))
        assert found == moved

    def test_a_move_brings_no_old_tensor_back(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        mended: Tables = {
            "tombstones": tombstones("changed", clip),
            "latents": latents(clip, digest="e" * 64),
        }
        append(layout, mended, seen=0)

        assert append(layout, self.move(clip, shard="1"), seen=0) is None
        rows = load_snapshot(layout).rows_of(RECIPE.digest)
        assert rows["digest"].to_pylist() == ["e" * 64]


class TestShardsAndRecipes:
    """Tombstones of housekeeping: a shard's tensors moved, a recipe that no ref reaches."""

    @staticmethod
    def repack(*clips: FakeClip, old: str = "0", new: str) -> Tables:
        return {
            "tombstones": tombstone("moved", shard=f"{old * 64}.tar"),
            "latents": latents(*clips, shard=new * 64),
        }

    @pytest.mark.parametrize("seen", [0, -1])
    def test_a_shards_clips_may_lie_in_another(self, layout: CacheLayout, seen: int) -> None:
        a, b = fake_clips(2)
        appended(layout, a, b)

        append(layout, self.repack(a, b, new="1"), seen=seen)

        index = load_snapshot(layout).index
        assert index["clip"].to_pylist() == [str(clip.key) for clip in (a, b)]
        assert set(index["shard"].to_pylist()) == {f"{'1' * 64}.tar"}

    def test_of_two_drivers_that_repack_a_shard_the_first_has_done_it(
        self, layout: CacheLayout
    ) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        for new in "12":
            append(layout, self.repack(clip, new=new), seen=0)

        assert load_snapshot(layout).index["shard"].to_pylist() == [f"{'1' * 64}.tar"]

    def test_clips_made_meanwhile_in_another_shard_stay(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)
        append(layout, {"latents": latents(clip, recipe=OTHER_RECIPE, shard="2" * 64)})

        append(layout, self.repack(clip, new="1"), seen=0)

        assert load_snapshot(layout).index["shard"].to_pylist() == [
            f"{'2' * 64}.tar",
            f"{'1' * 64}.tar",
        ]

    def test_a_shard_is_not_repacked_without_all_that_came_since(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a, b)

        assert append(layout, self.repack(a, new="1")) is None
        assert living_clips(layout) == keys(a, b)

    def test_a_recipe_that_nobody_reaches_leaves(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        append(layout, {"tombstones": tombstone("unreached", recipe=RECIPE.digest)}, seen=0)

        assert living_clips(layout) == []

    def test_it_may_come_anew(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a)
        driver = CommitLog(layout, seen=0)
        append(layout, {"tombstones": tombstone("unreached", recipe=RECIPE.digest)}, seen=0)

        driver.append({"latents": latents(a, b)}, RUN)

        assert living_clips(layout) == keys(a, b)

    def test_it_takes_along_what_came_meanwhile(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a)
        append(layout, {"latents": latents(b)})

        append(layout, {"tombstones": tombstone("unreached", recipe=RECIPE.digest)}, seen=0)

        assert living_clips(layout) == []
