"""Verification of rows, recipes and refs, and of which shards they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latents.cache.commit import read_commit
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, delete_ref, write_recipes, write_ref
from latents.cache.rows import (
    LatentRow,
    TombstoneRow,
    rows_to_table,
)
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    fake_source_row,
    make_cache,
)
from tests.latents.long_history import (
    DIGESTS,
    RECIPES,
    a_row,
    end_clips,
    flip,
    latents_file,
    latents_of,
    make_history,
    path,
    paths,
    shorten_checkpoints,
)


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return make_cache(tmp_path / "cache", num_clips=3)


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheLayout:
    shorten_checkpoints(monkeypatch)
    return make_history(tmp_path / "history")


def append_rows(layout: CacheLayout, *rows: LatentRow) -> str:
    """Commits rows unseen, as a driver with a fault would; gives their file."""
    log = CommitLog(layout)
    CommitLog(layout, seen=log.head()).append({"latents": rows_to_table("latents", rows)}, {})
    return latents_file(layout, log.head())


def test_recipes_that_no_ref_names_are_verified_too(layout: CacheLayout) -> None:
    other = fake_recipes(weights="new")
    commit_clips(layout, fake_clips(1), other)
    recipe = layout.recipe(other["kl.audio"].digest)
    flip(path(layout, recipe), 5)

    assert paths(verify_cache(layout)) == [recipe]


def test_a_clip_that_is_alive_twice_by_one_recipe_is_named(layout: CacheLayout) -> None:
    row = a_row(layout)
    file = append_rows(layout, row)

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.clip, damage.field) == (file, row.clip, "kl.video")
    assert damage.problem == (
        f"kl.video of clip {row.clip} by recipe {row.recipe[:12]} is there more than once, in "
        "commits 0, 2"
    )


def test_a_row_that_is_repeated_within_a_commit_is_named(layout: CacheLayout) -> None:
    (first, *_) = fake_clips(3, seed=1)
    row = replace(
        a_row(layout),
        clip=str(first.key),
        source=first.key.source_digest,
    )
    file = append_rows(layout, row, row)

    damaged = verify_cache(layout)

    assert [(one.path, one.clip) for one in damaged if one.path == file] == [(file, row.clip)]
    assert "in commits 2, 2" in damaged[0].problem


def test_a_clip_that_was_ended_and_made_again_is_alive_once(layout: CacheLayout) -> None:
    row = a_row(layout)
    moved = TombstoneRow(reason="moved", uri=None, source=row.source, clip=row.clip)
    rows = [row for row in latents_of(layout, 0) if row.clip == moved.clip]
    CommitLog(layout, seen=1).append(
        {
            "latents": rows_to_table("latents", rows),
            "tombstones": rows_to_table("tombstones", [moved]),
        },
        {},
    )

    assert verify_cache(layout) == []


def test_a_row_by_a_recipe_of_another_field_is_named(layout: CacheLayout) -> None:
    row = replace(a_row(layout), recipe=DIGESTS["kl.audio"])
    end_clips(layout, 0)
    file = append_rows(layout, row)

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.clip, damage.field) == (file, row.clip, "kl.video")
    assert damage.problem == (
        f"its recipe {DIGESTS['kl.audio'][:12]} is one of kl.audio, not of kl.video"
    )


def test_a_row_that_cannot_be_is_named_with_its_file(layout: CacheLayout) -> None:
    row = replace(fake_source_row(fake_clips(1)[0]), size=-1)
    CommitLog(layout).append({"sources": rows_to_table("sources", [row])}, {})

    (damage,) = verify_cache(layout)

    assert damage.path == layout.rows(read_commit(layout, 2).files["sources"].sha256)
    assert damage.problem == "sources row 0: the size is negative"


def test_a_cache_without_its_current_ref_is_noted(layout: CacheLayout) -> None:
    delete_ref(layout, "current")
    notes: list[str] = []

    assert verify_cache(layout, on_note=notes.append) == []

    assert [note.split(":")[0] for note in notes] == ["refs/current is not there"]


def test_a_ref_beyond_the_log_is_damage(layout: CacheLayout) -> None:
    write_ref(layout, "ahead", Ref(commit=7, recipes={}))

    (damage,) = verify_cache(layout)

    assert damage.path == "refs/ahead.json"
    assert damage.problem == "names commit 7; the log ends at 1"


def test_a_ref_to_a_recipe_that_is_not_there_is_damage(layout: CacheLayout) -> None:
    write_ref(layout, "other", Ref(commit=0, recipes={"kl.video": "f" * 64}))

    (damage,) = verify_cache(layout)

    assert damage.path == "refs/other.json"
    assert damage.problem == "names the recipe ffffffffffff for kl.video, which is missing"


def test_a_ref_to_a_recipe_of_another_field_is_damage(layout: CacheLayout) -> None:
    audio = DIGESTS["kl.audio"]
    write_ref(layout, "other", Ref(commit=0, recipes={"kl.video": audio}))

    (damage,) = verify_cache(layout)

    assert damage.path == "refs/other.json"
    assert damage.problem == f"names the recipe {audio[:12]} for kl.video; it is one of kl.audio"


def test_a_ref_to_a_recipe_that_made_nothing_by_then_is_damage(layout: CacheLayout) -> None:
    later = fake_recipes(weights="new")
    commit_clips(layout, fake_clips(1), later)
    video = later["kl.video"].digest
    write_ref(layout, "early", Ref(commit=1, recipes={"kl.video": video}))
    write_ref(layout, "late", Ref(commit=2, recipes={"kl.video": video}))

    (damage,) = verify_cache(layout)

    assert damage.path == "refs/early.json"
    assert damage.problem == (
        f"names the recipe {video[:12]} for kl.video; no row up to commit 1 is made by it"
    )


def test_a_ref_whose_clips_have_all_left_is_no_damage(layout: CacheLayout) -> None:
    end_clips(layout, 0, 1, 2)
    write_ref(layout, "current", Ref(commit=2, recipes=DIGESTS))

    assert verify_cache(layout) == []


def test_a_shard_that_is_dead_everywhere_may_be_gone(layout: CacheLayout) -> None:
    end_clips(layout, 0, 1)
    write_ref(layout, "current", Ref(commit=2, recipes=DIGESTS))
    path(layout, layout.shard(a_row(layout).shard)).unlink()

    assert verify_cache(layout) == []


def test_a_shard_that_an_old_ref_needs_may_not_be_gone(layout: CacheLayout) -> None:
    write_ref(layout, "old", Ref(commit=0, recipes=DIGESTS))
    end_clips(layout, 0, 1)
    write_ref(layout, "current", Ref(commit=2, recipes=DIGESTS))
    shard = layout.shard(a_row(layout).shard)
    path(layout, shard).unlink()

    assert set(paths(verify_cache(layout))) == {shard}


def test_a_ref_needs_the_shards_of_its_recipes_alone(layout: CacheLayout) -> None:
    """What other recipes made may have left since, and be gone."""
    other = fake_recipes(weights="new")
    commit_clips(layout, fake_clips(1), other)
    write_ref(layout, "old", Ref(commit=2, recipes=DIGESTS))
    unreached = [
        TombstoneRow(reason="unreached", uri=None, source=None, clip=None, recipe=recipe.digest)
        for recipe in other.values()
    ]
    CommitLog(layout, seen=2).append({"tombstones": rows_to_table("tombstones", unreached)}, {})
    path(layout, layout.shard(latents_of(layout, 2)[0].shard)).unlink()

    assert verify_cache(layout) == []


def test_a_ref_needs_the_shards_that_its_recipes_were_made_from(layout: CacheLayout) -> None:
    """A clip level that left the head since."""
    (recipe,) = RECIPES["kl.video"].parents
    row = replace(a_row(layout), field="clip.video", recipe=recipe.digest, shard=f"{'0' * 64}.tar")
    file = append_rows(layout, row)
    write_ref(layout, "old", Ref(commit=2, recipes=DIGESTS))
    gone = TombstoneRow(reason="unreached", uri=None, source=None, clip=None, recipe=recipe.digest)
    CommitLog(layout, seen=2).append({"tombstones": rows_to_table("tombstones", [gone])}, {})
    assert "clip.video" not in load_snapshot(layout).index["field"].to_pylist()

    (damage,) = verify_cache(layout)

    assert file == latents_file(layout, 2)
    assert (damage.path, damage.field) == (f"shards/{'0' * 64}.tar", "clip.video")


def test_with_tombstones_unread_nobody_says_that_a_shard_that_is_gone_is_needed(
    layout: CacheLayout,
) -> None:
    end_clips(layout, 0, 1)
    path(layout, layout.shard(a_row(layout).shard)).unlink()
    tombstones = layout.rows(read_commit(layout, 2).files["tombstones"].sha256)
    flip(path(layout, tombstones), 9)
    write_ref(layout, "current", Ref(commit=2, recipes=DIGESTS))

    assert paths(verify_cache(layout)) == [tombstones]


def test_with_tombstones_unread_what_came_after_them_is_needed(layout: CacheLayout) -> None:
    end_clips(layout, 0, 1)
    commit_clips(layout, fake_clips(1, seed=1), RECIPES)
    shard = layout.shard(latents_of(layout, 3)[0].shard)
    path(layout, shard).unlink()
    path(layout, layout.commit(2)).unlink()

    assert sorted(set(paths(verify_cache(layout)))) == [layout.commit(2), shard]


def test_a_shard_that_is_dead_and_there_is_verified(history: CacheLayout) -> None:
    row = latents_of(history, 3)[0]
    flip(path(history, history.shard(row.shard)), row.offset)

    (damage,) = verify_cache(history)

    assert (damage.path, damage.clip) == (history.shard(row.shard), row.clip)


def test_a_stored_recipe_that_nothing_names_yet_is_verified(layout: CacheLayout) -> None:
    """Its file is never written again, so what comes to name it would find the damage."""
    recipe = fake_recipes(weights="new")["kl.video"]
    write_recipes(layout, [recipe])
    flip(path(layout, layout.recipe(recipe.digest)), 9)

    assert paths(verify_cache(layout)) == [layout.recipe(recipe.digest)]


def test_rows_are_compared_over_more_than_one_block_of_commits(history: CacheLayout) -> None:
    """The first block has commits 0 to 3, so that the codes of clips differ from this one's."""
    row = a_row(history)
    file = append_rows(history, replace(latents_of(history, 8)[0], segment=1))
    assert row.clip != latents_of(history, 8)[0].clip

    assert paths(verify_cache(history)) == [file]
