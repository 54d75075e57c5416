"""Checkpoints: quicker to read than the commits that they stand for, and never anything else."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latents.cache.checkpoint import (
    INDEX,
    Checkpoint,
    checkpoint_from_json,
    checkpoint_numbers,
    make_checkpoint,
    make_missing_checkpoints,
    read_checkpoint,
    schema_of,
    usable_checkpoints,
)
from latents.cache.commit import Commit, RowFile, read_commit
from latents.cache.layout import CacheLayout, create_cache, find_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.log import CommitLog
from latents.cache.rows import (
    AnnotationRow,
    LatentRow,
    SourceRow,
    TombstoneReason,
    TombstoneRow,
    rows_to_table,
    table_to_bytes,
    with_commit,
)
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.clip import ClipKey
from latents.errors import DamagedError
from latents.recipe import sealed_json, sha256_hex
from latents.store.protocol import StoredTensor
from latents.testing import (
    FakeClip,
    fake_clips,
    fake_latent_row,
    fake_recipes,
    fake_source_row,
    quarantine_table,
)

RECIPES = [fake_recipes(weights=weights)["kl.video"] for weights in ("tiny", "other")]
SOURCES = [sha256_hex(b"source %d" % number) for number in range(2)]
TENSORS = fake_clips(1)[0].tensors


def clip_of(source: int, segment: int) -> FakeClip:
    key = ClipKey(source_digest=SOURCES[source], start_frame=100 * segment, fps=10)
    return FakeClip(key=key, tensors=TENSORS)


def shard_of(commit: int) -> str:
    return f"{commit:064d}.tar"


def latent_row(source: int, segment: int, recipe: int, commit: int) -> LatentRow:
    stored = StoredTensor(
        shard=shard_of(commit),
        offset=0,
        dtype="float16",
        shape=(8, 4, 2, 2),
        digest="0" * 64,
        crc32c=(0,) * 8,
    )
    return fake_latent_row(clip_of(source, segment), "kl.video", RECIPES[recipe], stored)


def source_row(uri: str, source: int, commit: int) -> SourceRow:
    row = fake_source_row(clip_of(source, 0))
    return SourceRow(
        uri=uri,
        size=commit,
        mtime_ns=0,
        etag="",
        digest=row.digest,
        segmentation=row.segmentation,
        num_segments=1,
    )


def label(source: int, text: str) -> AnnotationRow:
    return AnnotationRow(source=SOURCES[source], label=text, caption=None, split=None)


def commit_one(layout: CacheLayout, number: int) -> None:
    """A small commit: of each kind a row, and at every second one a tombstone for the last."""
    source, segment = number % 2, number % 3
    before = clip_of((number - 1) % 2, (number - 1) % 3).key
    ended = TombstoneRow(reason="changed", uri=None, source=before.source_digest, clip=str(before))
    CommitLog(layout, seen=number - 1).append(
        {
            "latents": rows_to_table("latents", [latent_row(source, segment, number % 2, number)]),
            "sources": rows_to_table("sources", [source_row(f"file:///{segment}", source, number)]),
            "quarantine": quarantine_table(SOURCES[source], segment=number),
            "annotations": rows_to_table("annotations", [label(source, str(number))]),
            "tombstones": rows_to_table("tombstones", [ended] * (number % 2)),
        },
        {"number": str(number)},
    )


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """All that a snapshot says."""
    tables = {
        "index": snapshot.index,
        "sources": snapshot.sources,
        "source_history": snapshot.source_history,
        "quarantine": snapshot.quarantine,
        "annotations": snapshot.annotations,
        "tombstones": snapshot.tombstones,
        **{recipe.digest: snapshot.rows_of(recipe.digest) for recipe in RECIPES},
    }
    return {"commit": snapshot.commit} | {name: table.to_pylist() for name, table in tables.items()}


def without_checkpoints(layout: CacheLayout) -> CacheLayout:
    """The same cache, whose commits alone say what it holds."""
    shutil.rmtree(Path(layout.url, "checkpoints"))
    return layout


def files(layout: CacheLayout, folder: str) -> dict[str, bytes]:
    return {file.name: layout.storage.read(file.name) for file in layout.storage.list(folder)}


def flip_a_byte(layout: CacheLayout, name: str) -> None:
    content = bytearray(layout.storage.read(name))
    content[len(content) // 2] ^= 1
    layout.storage.replace(name, bytes(content))


def remove(layout: CacheLayout, name: str) -> None:
    layout.storage.delete(name)


@pytest.fixture(scope="module", autouse=True)
def few_commits_per_checkpoint() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latents.cache.checkpoint.COMMITS_PER_CHECKPOINT", 4)
        patch.setattr(os, "fsync", lambda descriptor: None)  # many small files, and no power cut
        yield


@pytest.fixture(scope="module")
def made_once(few_commits_per_checkpoint: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two logs of eleven commits: checkpoints at 3 and 7, and three commits after them."""
    folder = tmp_path_factory.mktemp("made_once")
    ours, other = create_cache(folder / "cache"), create_cache(folder / "other")
    commit_one(ours, 0)
    CommitLog(other).append({"quarantine": quarantine_table("other")}, {})
    for number in range(1, 11):
        commit_one(ours, number)
        commit_one(other, number)
    return folder


@pytest.fixture
def layout(made_once: Path, tmp_path: Path) -> CacheLayout:
    """A log of eleven commits."""
    return find_cache(shutil.copytree(made_once / "cache", tmp_path / "cache"))


@pytest.fixture(scope="module")
def said(made_once: Path) -> dict[str, Any]:
    """What the log says while nothing is damaged."""
    return facts(load_snapshot(find_cache(made_once / "cache")))


@pytest.fixture
def other(made_once: Path, tmp_path: Path) -> CacheLayout:
    """A log of another history, as long."""
    return find_cache(shutil.copytree(made_once / "other", tmp_path / "other"))


class TestWhatTheySay:
    def test_a_snapshot_through_checkpoints_is_that_of_the_commits(
        self, layout: CacheLayout
    ) -> None:
        numbers = (-1, 0, 2, 3, 4, 6, 7, 8, 10)
        through_them = [facts(load_snapshot(layout, number)) for number in numbers]
        commits = without_checkpoints(layout)

        assert through_them == [facts(load_snapshot(commits, number)) for number in numbers]

    def test_they_stand_for_their_commits(self, layout: CacheLayout, said: dict[str, Any]) -> None:
        rows = [
            {file.sha256 for file in read_commit(layout, number).files.values()}
            for number in range(11)
        ]
        for digest in set().union(*rows[:8]).difference(*rows[8:]):
            layout.storage.delete(layout.rows(digest))
        for number in range(7):
            layout.storage.delete(layout.commit(number))

        assert facts(load_snapshot(layout)) == said

    def test_a_snapshot_from_between_them_uses_the_earlier_ones(self, layout: CacheLayout) -> None:
        before = facts(load_snapshot(layout, 5))
        for number in range(3):
            layout.storage.delete(layout.commit(number))

        assert facts(load_snapshot(layout, 5)) == before

    def test_each_names_its_commits_and_what_comes_before(self, layout: CacheLayout) -> None:
        first, second = usable_checkpoints(layout, 10)

        assert (first.first, first.number, second.first, second.number) == (0, 3, 4, 7)
        assert first.previous is None
        assert first.commit == second.previous == read_commit(layout, 3).digest
        assert second.commit == read_commit(layout, 7).digest
        assert {kind: file.num_rows for kind, file in second.files.items()} == {
            INDEX: 4,
            "latents": 4,
            "sources": 4,
            "quarantine": 4,
            "annotations": 4,
            "tombstones": 2,
        }

    def test_it_is_read_back_as_it_was(self, layout: CacheLayout) -> None:
        checkpoint = read_checkpoint(layout, 7)

        assert checkpoint_from_json(checkpoint.to_json()) == checkpoint

    def test_kinds_without_rows_have_no_file(self, tmp_path: Path) -> None:
        layout = create_cache(tmp_path)
        for number in range(5):
            table = quarantine_table("a" * 64, segment=number)
            CommitLog(layout).append({"quarantine": table}, {})

        assert list(read_checkpoint(layout, 3).files) == ["quarantine"]
        assert load_snapshot(layout).quarantine["segment"].to_pylist() == [0, 1, 2, 3, 4]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What one commit of a random log brings; it has a label of its own beside."""

    latents: list[tuple[int, int, int]] = field(default_factory=list)
    """Source, segment, recipe."""
    sources: list[tuple[str, int]] = field(default_factory=list)
    ended: list[tuple[TombstoneReason, dict[str, str]]] = field(default_factory=list)


BIT = st.integers(0, 1)
NAMES = st.one_of(
    st.builds(lambda uri: {"uri": uri}, st.sampled_from("ab")),
    st.builds(lambda source: {"source": SOURCES[source]}, BIT),
    st.builds(
        lambda source, segment: {
            "source": SOURCES[source],
            "clip": str(clip_of(source, segment).key),
        },
        BIT,
        BIT,
    ),
    st.builds(lambda recipe: {"recipe": RECIPES[recipe].digest}, BIT),
    st.builds(lambda commit: {"shard": shard_of(commit)}, st.integers(0, 6)),
)
REASONS = st.sampled_from(["changed", "pruned", "dropped", "moved", "unreached", "readmitted"])
EVENTS = st.lists(
    st.builds(
        Event,
        latents=st.lists(st.tuples(BIT, BIT, BIT), max_size=3, unique=True),
        sources=st.lists(st.tuples(st.sampled_from("ab"), BIT), max_size=2),
        ended=st.lists(st.tuples(REASONS, NAMES), max_size=2),
    ),
    min_size=3,
    max_size=7,
)


def tombstone_row(reason: TombstoneReason, names: dict[str, str]) -> TombstoneRow:
    every: dict[str, Any] = {"uri": None, "source": None, "clip": None}
    return TombstoneRow(reason=reason, **(every | names))


def commit_event(layout: CacheLayout, number: int, event: Event) -> None:
    latents = [latent_row(*one, number) for one in event.latents]
    sources = [source_row(uri, source, number) for uri, source in event.sources]
    ended = [tombstone_row(reason, names) for reason, names in event.ended]
    commit = CommitLog(layout, seen=number - 1).append(
        {
            "latents": rows_to_table("latents", latents),
            "sources": rows_to_table("sources", sources),
            "tombstones": rows_to_table("tombstones", ended),
            "annotations": rows_to_table("annotations", [label(number % 2, str(number))]),
        },
        {},
    )
    assert commit is not None
    assert commit.number == number


class PlainLog:
    """The same rows in lists, and what counts by the letter of its definition."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def is_living(self, commit: int, **names: str) -> bool:
        """Whether no tombstone of a later commit than this names the row."""
        return not any(
            self._ends(reason, ended, names)
            for event in self.events[commit + 1 :]
            for reason, ended in event.ended
        )

    @staticmethod
    def _ends(reason: str, ended: dict[str, str], names: dict[str, str]) -> bool:
        if reason == "readmitted":
            return False
        if "clip" in ended:
            return ended["clip"] == names.get("clip")
        return any(names.get(key) == name for key, name in ended.items())

    def latents(self) -> list[tuple[str, str, int]]:
        """Clip, recipe and commit of each living row, in the order of the commits."""
        rows = [
            (commit, SOURCES[source], str(clip_of(source, segment).key), RECIPES[recipe].digest)
            for commit, event in enumerate(self.events)
            for source, segment, recipe in event.latents
        ]
        return [
            (clip, recipe, commit)
            for commit, source, clip, recipe in rows
            if self.is_living(
                commit, source=source, clip=clip, recipe=recipe, shard=shard_of(commit)
            )
        ]

    def rows_of(self, recipe: str) -> list[tuple[str, str]]:
        """Clip and shard of the last living row of each clip, in order of clip."""
        latest = {clip: commit for clip, made_by, commit in self.latents() if made_by == recipe}
        return [(clip, shard_of(commit)) for clip, commit in sorted(latest.items())]

    def sources(self) -> list[tuple[str, str, int]]:
        """URI, digest and commit of the last row of each URI, if it lives."""
        latest = {
            uri: (SOURCES[source], commit)
            for commit, event in enumerate(self.events)
            for uri, source in event.sources
        }
        return [
            (uri, digest, commit)
            for uri, (digest, commit) in sorted(latest.items())
            if self.is_living(commit, uri=uri)
        ]

    def labels(self) -> dict[str, str]:
        """By source."""
        return {SOURCES[number % 2]: str(number) for number in range(len(self.events))}


def assert_equal(snapshot: Snapshot, plain: PlainLog) -> None:
    def columns(table: Any, *names: str) -> list[tuple[Any, ...]]:
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    assert columns(snapshot.index, "clip", "recipe", "commit") == plain.latents()
    assert columns(snapshot.sources, "uri", "digest", "commit") == plain.sources()
    assert dict(columns(snapshot.annotations, "source", "label")) == plain.labels()
    for recipe in RECIPES:
        rows = snapshot.rows_of(recipe.digest)
        assert columns(rows, "clip", "shard") == plain.rows_of(recipe.digest)


@settings(max_examples=8)
@given(events=EVENTS, commits_per_checkpoint=st.integers(2, 3))
def test_a_snapshot_is_what_its_definition_says_with_checkpoints_and_without(
    events: list[Event], commits_per_checkpoint: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("latents.cache.checkpoint.COMMITS_PER_CHECKPOINT", commits_per_checkpoint)
        layout = create_cache(folder)
        for number, event in enumerate(events):
            commit_event(layout, number, event)
        for has_checkpoints in (True, False):
            if not has_checkpoints:
                shutil.rmtree(Path(folder, "checkpoints"), ignore_errors=True)
            for number in range(-1, len(events)):
                assert_equal(load_snapshot(layout, number), PlainLog(events[: number + 1]))


class TestMaking:
    def test_every_256th_commit_makes_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("latents.cache.checkpoint.COMMITS_PER_CHECKPOINT", 256)

        assert list(checkpoint_numbers(254)) == []
        assert list(checkpoint_numbers(255)) == [255]
        assert list(checkpoint_numbers(600)) == [255, 511]

    def test_the_last_of_its_commits_makes_it(self, tmp_path: Path) -> None:
        layout = create_cache(tmp_path)
        found = []
        for number in range(9):
            commit_one(layout, number)
            found.append(len(files(layout, "checkpoints")))

        assert found == [0, 0, 0, 1, 1, 1, 1, 2, 2]

    def test_made_again_it_has_equal_bytes(self, layout: CacheLayout) -> None:
        before = files(layout, "")

        for number in (3, 7):
            make_checkpoint(layout, number)

        assert files(layout, "") == before

    def test_equal_commits_give_equal_bytes(self, layout: CacheLayout, tmp_path: Path) -> None:
        again = create_cache(tmp_path / "again")
        for number in range(11):
            commit_one(again, number)

        assert files(again, "") == files(layout, "")

    def test_only_missing_ones_are_made(self, layout: CacheLayout) -> None:
        before = files(layout, "checkpoints")
        layout.storage.delete(layout.checkpoint(3))

        assert make_missing_checkpoints(layout, 10) == 1
        assert make_missing_checkpoints(layout, 10) == 0
        assert files(layout, "checkpoints") == before

    def test_none_is_made_of_commits_that_are_not_there_yet(self, layout: CacheLayout) -> None:
        with pytest.raises(DamagedError, match="missing from the log"):
            make_checkpoint(layout, 11)
        assert len(files(layout, "checkpoints")) == 2

    def test_none_is_made_of_damaged_commits(self, layout: CacheLayout) -> None:
        layout.storage.delete(layout.checkpoint(7))
        flip_a_byte(layout, layout.rows(read_commit(layout, 5).files["sources"].sha256))

        with pytest.raises(DamagedError, match="do not hash"):
            make_missing_checkpoints(layout, 10)
        assert list(files(layout, "checkpoints")) == [layout.checkpoint(3)]

    def test_it_reads_its_own_commits_alone(self, layout: CacheLayout) -> None:
        class NotingStorage(LocalStorage):
            read_names: list[str] = []  # noqa: RUF012 - of this one test

            def read(self, name: str) -> bytes:
                self.read_names.append(name)
                return super().read(name)

        make_checkpoint(CacheLayout(NotingStorage(Path(layout.url))), 7)

        commits = {name for name in NotingStorage.read_names if name.startswith("commits/")}
        assert commits == {layout.commit(number) for number in (4, 5, 6, 7)}


@pytest.mark.parametrize(("number", "damage"), [(3, remove), (7, flip_a_byte)])
class TestDamage:
    """A checkpoint is derived: without it the commits say the same."""

    def test_a_damaged_checkpoint_is_passed_over(
        self,
        layout: CacheLayout,
        said: dict[str, Any],
        damage: Callable[[CacheLayout, str], None],
        number: int,
    ) -> None:
        damage(layout, layout.checkpoint(number))

        assert facts(load_snapshot(layout)) == said

    @pytest.mark.parametrize(
        "kind", [INDEX, "latents", "sources", "quarantine", "annotations", "tombstones"]
    )
    def test_damaged_rows_of_one_are_read_from_its_commits(
        self,
        layout: CacheLayout,
        said: dict[str, Any],
        damage: Callable[[CacheLayout, str], None],
        number: int,
        kind: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        name = layout.rows(read_checkpoint(layout, number).files[kind].sha256)

        damage(layout, name)

        with caplog.at_level(logging.WARNING):
            assert facts(load_snapshot(layout)) == said
        assert f"reading commits instead of a checkpoint: {name}" in caplog.text

    def test_where_the_commits_are_damaged_too_that_is_told(
        self, layout: CacheLayout, damage: Callable[[CacheLayout, str], None], number: int
    ) -> None:
        name = layout.rows(read_commit(layout, number - 1).files["sources"].sha256)
        damage(layout, layout.rows(read_checkpoint(layout, number).files["sources"].sha256))
        damage(layout, name)

        with pytest.raises(DamagedError) as caught:
            facts(load_snapshot(layout))
        assert caught.value.path == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        sealed_json({}),
        sealed_json({"number": 3, "commit": "a", "previous": None, "rows": []}),
        sealed_json({"number": 3, "commit": "a", "previous": None, "rows": {"latents": "x"}}),
        sealed_json(
            {
                "number": 3,
                "commit": "a",
                "previous": None,
                "rows": {"latents": {"sha256": "../x", "num_rows": 1}},
            }
        ),
        sealed_json(
            {
                "number": 3,
                "commit": "a",
                "previous": None,
                "rows": {"strange": {"sha256": "a" * 64, "num_rows": 1}},
            }
        ),
        sealed_json({"number": 3, "commit": "a", "previous": None, "rows": {}, "more": 1}),
        sealed_json({"number": 7, "commit": "a", "previous": None, "rows": {}}),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_passed_over(
    layout: CacheLayout, said: dict[str, Any], content: bytes
) -> None:
    layout.storage.replace(layout.checkpoint(3), content)

    with pytest.raises(DamagedError) as caught:
        read_checkpoint(layout, 3)
    assert caught.value.path == "checkpoints/000000000003.json"
    assert usable_checkpoints(layout, 10) == []
    assert facts(load_snapshot(layout)) == said


def forge(layout: CacheLayout, kind: str, content: bytes, *, num_rows: int) -> None:
    """Gives checkpoint 3 other rows of a kind, as a whole and sealed checkpoint."""
    sha256 = sha256_hex(content)
    layout.storage.replace(layout.rows(sha256), content)
    true = read_checkpoint(layout, 3)
    forged = Checkpoint(
        number=3,
        commit=true.commit,
        previous=true.previous,
        files={**true.files, kind: RowFile(sha256=sha256, num_rows=num_rows)},
    )
    layout.storage.replace(layout.checkpoint(3), forged.to_json())


class TestHostileRows:
    def test_rows_that_lead_out_of_the_cache_are_not_taken_from_a_checkpoint_either(
        self, layout: CacheLayout, said: dict[str, Any]
    ) -> None:
        rows = rows_to_table("latents", [latent_row(1, 7, 1, 1)])
        index = rows.schema.get_field_index("shard")
        rows = rows.set_column(index, rows.schema.field(index), [["../../secrets.tar"]])
        table = with_commit(rows, 1).cast(schema_of("latents"))

        forge(layout, "latents", table_to_bytes(table), num_rows=1)

        assert facts(load_snapshot(layout)) == said

    @pytest.mark.parametrize("kind", [INDEX, "latents", "sources"])
    def test_nor_are_rows_of_another_form(
        self, layout: CacheLayout, said: dict[str, Any], kind: str
    ) -> None:
        forge(layout, kind, table_to_bytes(quarantine_table("a")), num_rows=1)

        assert facts(load_snapshot(layout)) == said

    def test_nor_rows_of_another_number(self, layout: CacheLayout, said: dict[str, Any]) -> None:
        content = layout.storage.read(
            layout.rows(read_checkpoint(layout, 3).files["sources"].sha256)
        )

        forge(layout, "sources", content, num_rows=3)

        assert facts(load_snapshot(layout)) == said


def adopt(layout: CacheLayout, other: CacheLayout, number: int) -> None:
    """Puts another log's checkpoint in the place of ours."""
    for name, content in files(other, "rows").items():
        layout.storage.replace(name, content)
    layout.storage.replace(layout.checkpoint(number), other.storage.read(other.checkpoint(number)))


class TestAnotherHistory:
    @pytest.mark.parametrize(("number", "last"), [(3, 3), (3, 5), (3, 10)])
    def test_a_checkpoint_of_other_commits_is_damage(
        self, layout: CacheLayout, other: CacheLayout, number: int, last: int
    ) -> None:
        adopt(layout, other, number)

        with pytest.raises(DamagedError) as caught:
            load_snapshot(layout, last)
        assert caught.value.path == f"checkpoints/{number:012d}.json"

    @pytest.mark.parametrize("last", [7, 10])
    def test_so_is_a_whole_chain_of_them(
        self, layout: CacheLayout, other: CacheLayout, last: int
    ) -> None:
        for number in (3, 7):
            adopt(layout, other, number)

        with pytest.raises(DamagedError) as caught:
            load_snapshot(layout, last)
        assert caught.value.path == "checkpoints/000000000007.json"

    def test_one_that_does_not_follow_those_before_it_is_passed_over(
        self, layout: CacheLayout, said: dict[str, Any], other: CacheLayout
    ) -> None:
        adopt(layout, other, 7)

        assert [one.number for one in usable_checkpoints(layout, 10)] == [3]
        assert facts(load_snapshot(layout)) == said

    def test_a_commit_in_the_place_of_the_one_covered_is_told_where_the_chain_breaks(
        self, layout: CacheLayout
    ) -> None:
        forged = Commit(number=7, previous="0" * 64, files={}, run={})
        layout.storage.replace(layout.commit(7), forged.to_json())

        with pytest.raises(DamagedError) as caught:
            load_snapshot(layout)
        assert caught.value.path == "commits/000000000008.json"

    def test_removed_it_is_made_again(
        self, layout: CacheLayout, said: dict[str, Any], other: CacheLayout
    ) -> None:
        adopt(layout, other, 3)
        layout.storage.delete(layout.checkpoint(3))

        make_missing_checkpoints(layout, 10)

        assert facts(load_snapshot(layout)) == said
        assert [one.number for one in usable_checkpoints(layout, 10)] == [3, 7]
