"""Rewriting shards: what was taken down is gone to the last byte, and what lives is untouched."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from latents.cache import compact
from latents.cache.compact import Rewritten, rewrite_shards, shards_to_rewrite
from latents.cache.drivers import driving
from latents.cache.gc import collect_garbage, plan_gc
from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import CommitLog
from latents.cache.reach import read_history
from latents.cache.reader import open_cache, read_tensor
from latents.cache.refs import Ref, delete_ref, read_ref, write_ref
from latents.cache.removal import drop
from latents.cache.rows import LatentRow
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import CacheError, DamagedError
from latents.store.kinds import STORE_NAMES, StoreName, store_of
from latents.store.shard_writers import shard_writer_of
from latents.testing import commit_clips, fake_clips, fake_recipes, make_cache

RUN = {"command": "test"}
RECIPES = {field: recipe.digest for field, recipe in fake_recipes().items()}
CLIPS = fake_clips(6)


@pytest.fixture(scope="module", params=STORE_NAMES)
def store(request: pytest.FixtureRequest) -> StoreName:
    found: StoreName = request.param
    return found


@pytest.fixture(scope="module")
def template(store: StoreName, tmp_path_factory: pytest.TempPathFactory) -> CacheLayout:
    """Six clips, three in a shard."""
    root = tmp_path_factory.mktemp("template") / "cache"
    return make_cache(root, num_clips=6, clips_per_commit=3, store=store)


@pytest.fixture
def layout(template: CacheLayout, tmp_path: Path) -> CacheLayout:
    shutil.copytree(template.url, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


def rewrite(layout: CacheLayout, *, max_dead_fraction: float = 0) -> Rewritten:
    return rewrite_shards(
        layout,
        max_dead_fraction=max_dead_fraction,
        open_shard=lambda store: shard_writer_of(store)(layout.storage),
        run=RUN,
    )


def take_down(layout: CacheLayout, *clips: int) -> None:
    drop(layout, [str(CLIPS[clip].key) for clip in clips], run=RUN)


def gc(layout: CacheLayout) -> None:
    collect_garbage(layout, plan_gc(layout, grace_seconds=0), run=RUN)


def clips_whose_bytes_are_found(layout: CacheLayout) -> list[int]:
    """Of the clips those of which a tensor, or a part of it, is in some file."""
    contents = [path.read_bytes() for path in Path(layout.url).rglob("*") if path.is_file()]
    return [
        number
        for number, clip in enumerate(CLIPS)
        if any(
            tensor[index].tobytes() in content
            for tensor in clip.tensors.values()
            for index in range(len(tensor))
            for content in contents
        )
    ]


def rows(layout: CacheLayout) -> Sequence[LatentRow]:
    return [row for clip in open_cache(layout.url, level="kl") for row in clip.rows.values()]


def test_no_byte_of_what_was_taken_down_remains(layout: CacheLayout) -> None:
    take_down(layout, 1)
    gc(layout)
    assert clips_whose_bytes_are_found(layout) == [0, 1, 2, 3, 4, 5]

    rewrite(layout)
    gc(layout)

    assert clips_whose_bytes_are_found(layout) == [0, 2, 3, 4, 5]
    assert verify_cache(layout) == []


def test_shards_of_both_stores_are_rewritten_in_their_own(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, clips=CLIPS[:3], clips_per_commit=3, store="tar")
    commit_clips(layout, CLIPS[3:], fake_recipes(), store="zarr")
    write_ref(layout, "current", Ref(commit=1, recipes=RECIPES))
    take_down(layout, 1, 4)

    rewrite(layout)
    gc(layout)

    stores = {row.clip: store_of(row.shard) for row in rows(layout)}
    assert [stores[str(CLIPS[clip].key)] for clip in (0, 2, 3, 5)] == ["tar", "tar", "zarr", "zarr"]
    assert clips_whose_bytes_are_found(layout) == [0, 2, 3, 5]
    assert verify_cache(layout) == []


def test_what_lives_is_the_same_to_the_bit(layout: CacheLayout) -> None:
    take_down(layout, 1)
    before = inspect_cache(layout).levels["kl"].content_digest
    checksums = {(row.clip, row.field): row.crc32c for row in rows(layout)}

    rewrite(layout)
    gc(layout)

    assert inspect_cache(layout).levels["kl"].content_digest == before
    assert {(row.clip, row.field): row.crc32c for row in rows(layout)} == checksums
    tensors = {str(clip.key): clip.tensors for clip in CLIPS}
    for row in rows(layout):
        assert read_tensor(layout, row).tobytes() == tensors[row.clip][row.field].tobytes()


def test_only_shards_in_which_something_has_left_are_rewritten(layout: CacheLayout) -> None:
    take_down(layout, 4)
    before = {row.clip: row.shard for row in rows(layout)}

    (share,) = rewrite(layout).shards

    assert share.shard == before[str(CLIPS[3].key)]
    assert (share.num_living, share.num_dead) == (4, 2)
    tensor_bytes = sum(tensor.nbytes for tensor in CLIPS[0].tensors.values())
    assert (share.living_bytes, share.dead_bytes) == (2 * tensor_bytes, tensor_bytes)
    after = {row.clip: row.shard for row in rows(layout)}
    assert [after[str(c.key)] == before[str(c.key)] for c in CLIPS if str(c.key) in after] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("max_dead_fraction", "num_rewritten"), [(0.3, 1), (0.34, 0), (0.0, 1)])
def test_a_share_that_has_left_may_be_tolerated(
    layout: CacheLayout, max_dead_fraction: float, num_rewritten: int
) -> None:
    take_down(layout, 1)

    found = shards_to_rewrite(layout, read_history(layout), max_dead_fraction=max_dead_fraction)

    assert len(found) == num_rewritten
    assert len(rewrite(layout, max_dead_fraction=max_dead_fraction).shards) == num_rewritten


def test_nothing_is_committed_where_nothing_has_left(layout: CacheLayout) -> None:
    assert rewrite(layout) == Rewritten(shards=(), moved_refs=(), pinning_refs={})
    assert CommitLog(layout).head() == 1


def test_a_ref_to_the_same_latents_moves_along(layout: CacheLayout) -> None:
    take_down(layout, 1)

    assert rewrite(layout).moved_refs == ("current",)

    ref = read_ref(layout, "current")
    assert ref == Ref(commit=CommitLog(layout).head(), recipes=RECIPES)


def test_a_ref_to_what_was_taken_down_pins_its_shard_and_is_told(layout: CacheLayout) -> None:
    write_ref(layout, "before", Ref(commit=1, recipes=RECIPES))
    take_down(layout, 1)

    rewritten = rewrite(layout)
    gc(layout)

    assert (rewritten.shards, rewritten.pinning_refs) == ((), {"before": 1})
    assert len(open_cache(layout.url, level="kl", ref="before")) == 6
    delete_ref(layout, "before")
    assert len(rewrite(layout).shards) == 1
    gc(layout)
    assert clips_whose_bytes_are_found(layout) == [0, 2, 3, 4, 5]


def test_a_ref_to_fewer_clips_does_not_move(layout: CacheLayout) -> None:
    """Nor is the shard rewritten that it would keep all the same."""
    write_ref(layout, "first", Ref(commit=0, recipes=RECIPES))
    take_down(layout, 4, 1)

    rewritten = rewrite(layout)

    assert rewritten.pinning_refs == {"first": 1}
    assert len(rewritten.shards) == 1
    assert read_ref(layout, "first") == Ref(commit=0, recipes=RECIPES)
    assert len(open_cache(layout.url, level="kl", ref="first")) == 3


def test_a_ref_to_what_has_left_whole_does_not_move(layout: CacheLayout) -> None:
    write_ref(layout, "before", Ref(commit=1, recipes=RECIPES))
    take_down(layout, 0, 1, 2)

    rewritten = rewrite(layout)
    gc(layout)

    assert (rewritten.moved_refs, rewritten.pinning_refs) == ((), {"before": 1})
    assert len(open_cache(layout.url, level="kl", ref="before")) == 6


def test_a_run_that_was_killed_before_refs_moved_is_finished_by_the_next(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_down(layout, 1)
    with monkeypatch.context() as patch:
        patch.setattr(compact, "_move_refs", lambda layout: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rewrite(layout)

    rewritten = rewrite(layout)

    assert (rewritten.shards, rewritten.moved_refs) == ((), ("current",))
    gc(layout)
    assert clips_whose_bytes_are_found(layout) == [0, 2, 3, 4, 5]


def test_many_shards_are_committed_some_at_a_time(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "SHARDS_PER_COMMIT", 1)
    take_down(layout, 1, 4)
    head = CommitLog(layout).head()

    assert len(rewrite(layout).shards) == 2
    assert CommitLog(layout).head() == head + 2
    gc(layout)
    assert clips_whose_bytes_are_found(layout) == [0, 2, 3, 5]
    assert verify_cache(layout) == []


def test_latents_of_several_recipes_are_told_apart(layout: CacheLayout) -> None:
    other = fake_recipes(weights="other")
    commit_clips(layout, CLIPS, other)
    take_down(layout, 1)

    rewrite(layout)
    gc(layout)

    snapshot = load_snapshot(layout)
    for recipe in (*fake_recipes().values(), *other.values()):
        assert snapshot.rows_of(recipe.digest).num_rows == 5
    assert verify_cache(layout) == []


def test_no_shard_is_rewritten_while_drivers_are_at_work(layout: CacheLayout) -> None:
    take_down(layout, 1)

    with (
        driving(layout, purpose="ingest"),
        pytest.raises(CacheError, match=r"drivers are at work \(ingest on .*\); run this again"),
    ):
        rewrite(layout)


def test_a_damaged_tensor_is_not_copied(layout: CacheLayout) -> None:
    take_down(layout, 1)
    row = next(row for row in rows(layout) if row.clip == str(CLIPS[0].key))
    path = Path(layout.url, layout.shard(row.shard))
    content = bytearray(path.read_bytes())
    content[row.offset + math.prod(row.shape[1:]) * 2] ^= 1  # its second slice
    path.chmod(0o644)
    path.write_bytes(content)

    with pytest.raises(DamagedError, match="slice 1, fails its CRC-32C"):
        rewrite(layout)

    assert not list(Path(layout.url).rglob(".partial-*"))
