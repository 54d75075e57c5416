"""Garbage: what nothing needs is found and removed, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latents.cache import checkpoint
from latents.cache.compact import rewrite_shards
from latents.cache.drivers import collecting, driving
from latents.cache.gc import GcPlan, collect_garbage, num_bytes_by_reason, plan_gc
from latents.cache.layout import CacheLayout, create_cache, find_cache
from latents.cache.log import CommitLog
from latents.cache.reader import read_tensor
from latents.cache.refs import Ref, delete_ref, read_ref, ref_names, write_recipes, write_ref
from latents.cache.removal import drop
from latents.cache.rows import latent_row, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import CacheError, DamagedError
from latents.recipe import Recipe, sha256_hex
from latents.store.shard_writers import shard_writer_of
from latents.store.tar_store import TarShardWriter
from latents.testing import (
    FakeClip,
    commit_clips,
    fake_clips,
    fake_latent_row,
    fake_recipes,
    make_cache,
)

RUN = {"command": "test"}
OLD, NEW = fake_recipes(weights="old"), fake_recipes(weights="new")
LONG_AGO = 10_000.0


def point(layout: CacheLayout, name: str, recipes: Mapping[str, Recipe]) -> None:
    """A ref to the head."""
    digests = {name: recipe.digest for name, recipe in recipes.items()}
    write_ref(layout, name, Ref(commit=CommitLog(layout).head(), recipes=digests))


def leave(layout: CacheLayout, name: str, content: bytes = b"left behind") -> str:
    """A file that some run left long ago."""
    path = Path(layout.url, name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    age(path)
    return name


def age(path: Path, seconds: float = LONG_AGO) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def age_all(layout: CacheLayout) -> None:
    for path in Path(layout.url).rglob("*"):
        if path.is_file():
            age(path)


def files(layout: CacheLayout) -> set[str]:
    return {file.name for file in layout.storage.list("")}


def shards(layout: CacheLayout) -> set[str]:
    return {file.name for file in layout.storage.list("shards")}


def reasons(plan: GcPlan) -> dict[str, str]:
    return {one.name: one.reason for one in plan.removable}


def left(plan: GcPlan) -> dict[str, str | None]:
    return {one.name: one.left_for for one in plan.left}


def gc(layout: CacheLayout, **options: Any) -> set[str]:
    """Names of what was removed."""
    collected = collect_garbage(layout, plan_gc(layout, **options), run=RUN)
    return {one.name for one in collected.removed}


def read_rows_of(layout: CacheLayout, recipe: Recipe, commit: int | None = None) -> list[bytes]:
    """The tensors that a recipe made, as they are read now."""
    rows = load_snapshot(layout, commit).rows_of(recipe.digest).to_pylist()
    return [read_tensor(layout, latent_row(row)).tobytes() for row in rows]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> CacheLayout:
    """Three clips in two shards, named by ``refs/current``, and all of it old."""
    layout = make_cache(tmp_path_factory.mktemp("template") / "cache", num_clips=3, recipes=OLD)
    age_all(layout)
    return layout


@pytest.fixture
def layout(template: CacheLayout, tmp_path: Path) -> CacheLayout:
    shutil.copytree(template.url, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


@pytest.fixture
def refreshed(layout: CacheLayout) -> CacheLayout:
    """The same clips by the recipes of a new encoder, which ``refs/current`` names now."""
    commit_clips(layout, fake_clips(3), NEW)
    point(layout, "current", NEW)
    age_all(layout)
    return layout


class TestOrphans:
    def test_what_no_commit_names_is_listed_with_its_reason_and_removed(
        self, layout: CacheLayout
    ) -> None:
        before = files(layout)
        orphans = {
            leave(layout, f"shards/{sha256_hex(b'a')}.tar"): "orphan shard",
            leave(layout, f"shards/{sha256_hex(b'a')}.zip"): "orphan shard",
            leave(layout, f"rows/{sha256_hex(b'b')}.parquet"): "orphan rows",
            leave(layout, f"recipes/{sha256_hex(b'c')}.json"): "orphan recipe",
            leave(layout, "checkpoints/000000000001.json"): "orphan checkpoint",
            leave(layout, f"drivers/{'d' * 32}.json"): "stale driver mark",
            leave(layout, "shards/.partial-e"): "partial file",
            leave(layout, "refs/.partial-f"): "partial file",
        }

        plan = plan_gc(layout)

        assert reasons(plan) == orphans
        assert num_bytes_by_reason(plan.removable)["partial file"] == 22
        assert files(layout) == before | orphans.keys()
        assert gc(layout) == orphans.keys()
        assert files(layout) == before
        assert verify_cache(layout) == []

    def test_young_files_are_left(self, layout: CacheLayout) -> None:
        name = leave(layout, "shards/.partial-e")
        age(Path(layout.url, name), 60)

        plan = plan_gc(layout)
        assert (reasons(plan), left(plan)) == ({}, {name: "too young"})
        assert gc(layout) == set()
        assert gc(layout, grace_seconds=30) == {name}

    def test_files_that_are_not_the_caches_own_are_left(self, layout: CacheLayout) -> None:
        for name in ("notes.txt", "shards/notes.tar", "refs/old (copy).json", "commits/x.json"):
            leave(layout, name)

        assert reasons(plan_gc(layout, grace_seconds=0)) == {}

    def test_what_came_into_use_since_the_plan_stays(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1, seed=7)
        writer = TarShardWriter(layout.storage)
        writer.add(str(clip.key), clip.tensors)
        stored = writer.seal()
        orphan = leave(layout, f"shards/{sha256_hex(b'a')}.tar")
        plan = plan_gc(layout, grace_seconds=0)
        assert len(plan.removable) == 2
        commit_stored(layout, clip, OLD, stored)

        collected = collect_garbage(layout, plan, run=RUN)

        assert [one.name for one in collected.removed] == [orphan]
        assert verify_cache(layout) == []

    def test_what_is_garbage_only_since_the_plan_stays(self, layout: CacheLayout) -> None:
        """What goes is what was shown."""
        plan = plan_gc(layout)
        orphan = leave(layout, f"shards/{sha256_hex(b'a')}.tar")

        assert collect_garbage(layout, plan, run=RUN).removed == ()
        assert gc(layout) == {orphan}

    def test_valid_checkpoints_and_their_rows_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "COMMITS_PER_CHECKPOINT", 2)
        layout = make_cache(tmp_path / "cache", num_clips=5, clips_per_commit=1)
        assert len(list(layout.storage.list("checkpoints"))) == 2

        assert reasons(plan_gc(layout, grace_seconds=0)) == {}

    def test_a_damaged_checkpoint_goes_with_its_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "COMMITS_PER_CHECKPOINT", 2)
        layout = make_cache(tmp_path / "cache", num_clips=4, clips_per_commit=1)
        leave(layout, layout.checkpoint(3))

        found = sorted(reasons(plan_gc(layout, grace_seconds=0)).values())
        assert found == ["orphan checkpoint", "orphan rows", "orphan rows", "orphan rows"]
        gc(layout, grace_seconds=0)
        assert len(read_rows_of(layout, fake_recipes()["kl.video"])) == 4

    def test_a_log_that_lost_a_commit_is_not_collected(self, layout: CacheLayout) -> None:
        Path(layout.url, layout.commit(0)).unlink()

        with pytest.raises(DamagedError, match="missing from the log"):
            gc(layout, grace_seconds=0)

    def test_a_log_that_was_cut_off_is_not_collected(self, layout: CacheLayout) -> None:
        Path(layout.url, layout.commit(1)).unlink()

        with pytest.raises(DamagedError, match="the log ends at 0; nothing was removed"):
            gc(layout, grace_seconds=0)


def commit_stored(
    layout: CacheLayout, clip: FakeClip, recipes: Mapping[str, Recipe], stored: Any
) -> None:
    write_recipes(layout, recipes.values())
    rows = [
        fake_latent_row(clip, name, recipes[name], stored[str(clip.key), name])
        for name in clip.tensors
    ]
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({"latents": rows_to_table("latents", rows)}, RUN)


class TestBesideDrivers:
    """What a driver could make again under the same name stays while one is at work."""

    def test_only_what_nobody_can_make_again_goes(self, layout: CacheLayout) -> None:
        orphan = leave(layout, f"shards/{sha256_hex(b'a')}.tar")
        recipe = leave(layout, f"recipes/{sha256_hex(b'c')}.json")
        mark = leave(layout, f"drivers/{'d' * 32}.json")
        partial = leave(layout, "shards/.partial-e")

        with driving(layout, purpose="ingest"):
            plan = plan_gc(layout)
            assert [driver.purpose for driver in plan.drivers] == ["ingest"]
            assert left(plan) == {orphan: "drivers at work", recipe: "drivers at work"}
            assert gc(layout) == {mark, partial}
        assert gc(layout) == {orphan, recipe}

    def test_what_a_live_writer_is_writing_stays(self, layout: CacheLayout) -> None:
        with driving(layout, purpose="ingest"):
            writer = TarShardWriter(layout.storage)
            assert gc(layout, grace_seconds=0) == set()
            clip = fake_clips(1, seed=7)[0]
            writer.add(str(clip.key), clip.tensors)
            commit_stored(layout, clip, OLD, writer.seal())

        assert verify_cache(layout) == []

    def test_unreached_latents_stay(self, refreshed: CacheLayout) -> None:
        """A job that goes back to the old encoder counts on them."""
        with driving(refreshed, purpose="ingest"):
            assert plan_gc(refreshed, unreached=True).ended == ()
            assert gc(refreshed, unreached=True) == set()

        assert len(read_rows_of(refreshed, OLD["kl.video"])) == 3

    def test_a_second_gc_is_refused(self, layout: CacheLayout) -> None:
        plan = plan_gc(layout)
        with collecting(layout), pytest.raises(CacheError, match="another gc is running"):
            collect_garbage(layout, plan, run=RUN)


class TestUnreached:
    def test_latents_of_an_old_encoder_stay_until_they_are_asked_for(
        self, refreshed: CacheLayout
    ) -> None:
        plan = plan_gc(refreshed)

        assert reasons(plan) == {}
        assert set(left(plan).values()) == {"not asked for"}
        assert len(plan.left) == 2
        assert {one.recipe: one.num_clips for one in plan.unreached} == {
            OLD["kl.video"].digest: 3,
            OLD["kl.audio"].digest: 3,
        }
        assert sum(one.num_bytes for one in plan.unreached) == 3 * (256 + 160)
        assert gc(refreshed) == set()
        assert len(read_rows_of(refreshed, OLD["kl.video"])) == 3

    def test_then_they_leave_the_head_before_their_shards_go(self, refreshed: CacheLayout) -> None:
        before = shards(refreshed)

        removed = gc(refreshed, unreached=True)

        assert len(removed) == 2
        assert shards(refreshed) == before - removed
        assert read_rows_of(refreshed, OLD["kl.video"]) == []
        assert len(read_rows_of(refreshed, NEW["kl.video"])) == 3
        assert verify_cache(refreshed) == []

    def test_what_another_ref_names_stays(self, refreshed: CacheLayout) -> None:
        write_ref(
            refreshed,
            "previous",
            Ref(commit=1, recipes={name: recipe.digest for name, recipe in OLD.items()}),
        )

        assert gc(refreshed, unreached=True) == set()
        assert len(read_rows_of(refreshed, OLD["kl.video"], commit=1)) == 3

    def test_they_can_be_made_again(self, refreshed: CacheLayout) -> None:
        gc(refreshed, unreached=True)

        commit_clips(refreshed, fake_clips(3), OLD)

        assert len(read_rows_of(refreshed, OLD["kl.video"])) == 3
        assert verify_cache(refreshed) == []

    def test_work_that_was_not_completed_stays(self, layout: CacheLayout) -> None:
        """With the older latents of its recipe, on which it counts."""
        commit_clips(layout, fake_clips(3)[:1], NEW)
        point(layout, "current", OLD)
        commit_clips(layout, fake_clips(3)[1:], NEW)
        age_all(layout)

        assert gc(layout, unreached=True) == set()
        assert len(read_rows_of(layout, NEW["kl.video"])) == 3

    def test_without_a_current_ref_everything_stays(self, refreshed: CacheLayout) -> None:
        point(refreshed, "mine", NEW)
        delete_ref(refreshed, "current")

        assert gc(refreshed, unreached=True) == set()

    def test_what_reached_latents_were_made_from_stays(self, tmp_path: Path) -> None:
        layout = create_cache(tmp_path / "cache")
        (clip,) = fake_clips(1)
        parents = {"clip.video": NEW["kl.video"].parents[0]}
        pixels = FakeClip(key=clip.key, tensors={"clip.video": clip.tensors["kl.video"]})
        commit_clips(layout, [pixels], parents)
        commit_clips(layout, [clip], NEW)
        point(layout, "current", NEW)
        age_all(layout)

        assert gc(layout, unreached=True) == set()
        assert len(read_rows_of(layout, parents["clip.video"])) == 1

    def test_a_shard_in_which_something_is_reached_stays_whole(self, layout: CacheLayout) -> None:
        """As after a change of the mel settings: the pictures' latents are still right."""
        mixed = {"kl.video": OLD["kl.video"], "kl.audio": NEW["kl.audio"]}
        sounds = [
            FakeClip(key=clip.key, tensors={"kl.audio": clip.tensors["kl.audio"]})
            for clip in fake_clips(3)
        ]
        commit_clips(layout, sounds, {"kl.audio": NEW["kl.audio"]})
        point(layout, "current", mixed)
        age_all(layout)

        assert gc(layout, unreached=True) == set()
        assert read_rows_of(layout, OLD["kl.audio"]) == []
        assert len(read_rows_of(layout, OLD["kl.video"])) == 3
        assert verify_cache(layout) == []


def test_a_shard_of_which_all_has_left_goes(layout: CacheLayout) -> None:
    drop(layout, [str(fake_clips(3)[2].key)], run=RUN)

    assert len(gc(layout, grace_seconds=0)) == 1
    assert len(read_rows_of(layout, OLD["kl.video"])) == 2
    assert verify_cache(layout) == []


def test_a_shard_of_which_all_has_left_stays_while_a_ref_names_it(layout: CacheLayout) -> None:
    point(layout, "before", OLD)
    drop(layout, [str(fake_clips(3)[2].key)], run=RUN)

    assert gc(layout, grace_seconds=0) == set()
    assert len(read_rows_of(layout, OLD["kl.video"], commit=1)) == 3


Held = dict[tuple[str, str], bytes]
"""Clip and recipe to the bytes of a tensor."""


@dataclass
class Model:
    """A cache as plain dictionaries."""

    layout: CacheLayout
    random: random.Random
    unused: list[FakeClip]
    head: Held = field(default_factory=dict)
    later: Held = field(default_factory=dict)
    """What was committed since ``current`` moved last."""
    refs: dict[str, Held] = field(default_factory=dict)

    def ingest(self) -> None:
        clips = [self.unused.pop() for _ in range(self.random.randint(1, 3))]
        recipes = self.random.choice((OLD, NEW))
        commit_clips(self.layout, clips, recipes)
        made = {
            (str(clip.key), recipes[name].digest): tensor.tobytes()
            for clip in clips
            for name, tensor in clip.tensors.items()
        }
        self.head |= made
        self.later |= made

    def point(self) -> None:
        recipes = self.random.choice((OLD, NEW))
        digests = {recipe.digest for recipe in recipes.values()}
        held = {key: content for key, content in self.head.items() if key[1] in digests}
        if not held:
            return
        name = self.random.choice(("current", "current", "previous", "mine"))
        point(self.layout, name, recipes)
        self.refs[name] = held
        if name == "current":
            self.later = {}

    def forget(self) -> None:
        if self.refs:
            name = self.random.choice(sorted(self.refs))
            delete_ref(self.layout, name)
            del self.refs[name]

    def drop(self) -> None:
        if not self.head:
            return
        clip = self.random.choice(sorted(self.head))[0]
        dropped = drop(self.layout, [clip], run=RUN)
        self._lose(self.head, clip)
        self._lose(self.later, clip)
        if dropped.current == "moved":
            self._lose(self.refs["current"], clip)

    def orphan(self) -> None:
        writer = TarShardWriter(self.layout.storage)
        for clip in self.unused[-2:]:  # those that the next ingest will commit
            writer.add(str(clip.key), clip.tensors)
        writer.seal()

    def compact(self) -> None:
        rewrite_shards(
            self.layout,
            max_dead_fraction=0,
            open_shard=lambda store: shard_writer_of(store)(self.layout.storage),
            run=RUN,
        )

    def gc(self) -> None:
        gc(self.layout, grace_seconds=0)

    def gc_unreached(self) -> None:
        gc(self.layout, grace_seconds=0, unreached=True)
        held = self.read(None)
        named = {recipe for ref in self.refs.values() for _, recipe in ref}
        needed = {key: content for key, content in self.head.items() if key[1] in named}
        assert held.items() >= (needed | self.later).items()
        assert held.items() <= self.head.items()
        assert held == self.head or "current" in self.refs
        self.head = held

    def check(self) -> None:
        assert self.read(None) == self.head
        assert set(ref_names(self.layout)) == self.refs.keys()
        for name, expected in self.refs.items():
            ref = read_ref(self.layout, name)
            assert ref is not None
            assert self.read(ref) == expected

    def read(self, ref: Ref | None) -> Held:
        """Every tensor that a ref reaches, or the head."""
        snapshot = load_snapshot(self.layout, ref.commit if ref else None)
        recipes = [recipe.digest for recipe in (*OLD.values(), *NEW.values())]
        return {
            (row["clip"], recipe): read_tensor(self.layout, latent_row(row)).tobytes()
            for recipe in recipes
            if ref is None or recipe in ref.recipes.values()
            for row in snapshot.rows_of(recipe).to_pylist()
        }

    @staticmethod
    def _lose(held: Held, clip: str) -> None:
        for key in [key for key in held if key[0] == clip]:
            del held[key]


Operation = Callable[[Model], None]
HARMLESS: tuple[Operation, ...] = (
    *(Model.ingest, Model.ingest, Model.point, Model.point, Model.point),
    *(Model.forget, Model.drop, Model.drop, Model.orphan),
)
COLLECTING: tuple[Operation, ...] = (Model.compact, Model.gc, Model.gc_unreached)
HISTORIES = st.lists(
    st.tuples(st.lists(st.sampled_from(HARMLESS), max_size=5), st.sampled_from(COLLECTING)),
    min_size=2,
    max_size=4,
)
History = Sequence[tuple[Sequence[Operation], Operation]]


def live_through(history: History, root: Path, seed: int) -> None:
    """After each gc everything reads as if there had been none, and nothing is left to remove."""
    layout = create_cache(root)
    model = Model(layout=layout, random=random.Random(seed), unused=fake_clips(60, seed=seed))
    model.ingest()
    for harmless, collect in history:
        for operation in harmless:
            operation(model)
        collect(model)
        model.check()
    gc(layout, grace_seconds=0)
    model.check()
    assert verify_cache(layout) == []
    assert reasons(plan_gc(layout, grace_seconds=0)) == {}


@settings(max_examples=3)
@given(HISTORIES, st.integers(0, 2**16))
def test_whatever_happened_a_gc_takes_nothing_that_is_needed(
    tmp_path_factory: pytest.TempPathFactory, history: History, seed: int
) -> None:
    live_through(history, tmp_path_factory.mktemp("history") / "cache", seed)


@pytest.mark.slow
@settings(max_examples=50)
@given(HISTORIES, st.integers(0, 2**16))
def test_whatever_happened_a_gc_takes_nothing_that_is_needed_at_length(
    tmp_path_factory: pytest.TempPathFactory, history: History, seed: int
) -> None:
    live_through(history, tmp_path_factory.mktemp("history") / "cache", seed)
