"""The commit log: a chain in which nothing is lost, doubled or silently changed."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latents.cache.commit import Commit, RowFile, commit_from_json, read_commit, read_rows
from latents.cache.layout import CacheLayout, create_cache, find_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.log import CommitLog
from latents.cache.rows import (
    table_to_bytes,
)
from latents.cache.storage import StoredFile
from latents.errors import CacheError, DamagedError
from latents.recipe import sealed_json, sha256_hex
from latents.testing import (
    fake_clips,
    quarantine_table,
)
from tests.latents.log_rows import (
    OTHER_RECIPE,
    RUN,
    append,
    appended,
    clips_in,
    keys,
    latents,
)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # imported once for all of them


def damage_of(layout: CacheLayout) -> DamagedError:
    with pytest.raises(DamagedError) as caught:
        clips_in(layout)
    return caught.value


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


class TestCommits:
    def test_an_empty_log_has_no_head(self, layout: CacheLayout) -> None:
        assert CommitLog(layout).head() == -1
        assert CommitLog(layout).numbers() == []

    def test_a_commit_holds_every_kind_of_rows_at_once(self, layout: CacheLayout) -> None:
        table, quarantine = latents(*fake_clips(2)), quarantine_table("ab")

        commit = append(layout, {"quarantine": quarantine, "latents": table})

        assert commit is not None
        assert {kind: file.num_rows for kind, file in commit.files.items()} == {
            "latents": 2,
            "quarantine": 1,
        }
        read = {kind: read_rows(layout, kind, file) for kind, file in commit.files.items()}
        assert read == {"latents": table, "quarantine": quarantine}
        assert commit.run == RUN

    def test_commits_are_numbered_and_name_the_one_before(self, layout: CacheLayout) -> None:
        first, second = (appended(layout, clip) for clip in fake_clips(2))

        assert (first.number, first.previous) == (0, None)
        assert second.number == 1
        stored = layout.storage.read(layout.commit(0))
        assert second.previous == sha256_hex(stored) == first.digest

    def test_a_commit_is_read_back_as_it_was(self, layout: CacheLayout) -> None:
        commit = appended(layout, *fake_clips(1))

        assert read_commit(layout, 0) == commit == commit_from_json(commit.to_json())

    def test_nothing_to_commit_is_no_commit(self, layout: CacheLayout) -> None:
        assert append(layout, {"latents": latents()}) is None
        assert append(layout, {}) is None
        assert CommitLog(layout).head() == -1

    def test_equal_rows_are_one_file(self, layout: CacheLayout) -> None:
        for _ in range(2):
            append(layout, {"quarantine": quarantine_table("ab")})

        assert len(list(layout.storage.list("rows"))) == 1

    def test_some_of_the_commits_can_be_walked(self, layout: CacheLayout) -> None:
        commits = [appended(layout, clip) for clip in fake_clips(5)]

        assert list(CommitLog(layout).commits(2, 3)) == commits[2:4]

    def test_other_files_beside_the_commits_are_passed_over(self, layout: CacheLayout) -> None:
        appended(layout, *fake_clips(1))
        for name in ("notes.json", "000000000009 (copy).json", ".000000000009.json", ".partial-x"):
            layout.storage.create(f"commits/{name}", b"")
        layout.storage.create("commits/old/000000000009.json", b"")

        assert CommitLog(layout).numbers() == [0]


class TestOtherDrivers:
    def test_clips_that_are_there_already_are_dropped(self, layout: CacheLayout) -> None:
        a, b, c = fake_clips(3)
        appended(layout, a, b)

        assert append(layout, {"latents": latents(b, c)}) is not None
        assert clips_in(layout) == [str(clip.key) for clip in (a, b, c)]
        assert append(layout, {"latents": latents(a, c)}) is None

    def test_clips_committed_since_a_drivers_snapshot_are_dropped(
        self, layout: CacheLayout
    ) -> None:
        a, b, c = fake_clips(3)
        appended(layout, a)
        driver = CommitLog(layout, seen=0)
        appended(layout, b)

        driver.append({"latents": latents(b, c)}, RUN)

        assert clips_in(layout) == [str(clip.key) for clip in (a, b, c)]

    def test_a_driver_does_not_commit_its_own_clip_twice(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        driver = CommitLog(layout)
        driver.append({"latents": latents(clip)}, RUN)

        assert driver.append({"latents": latents(clip)}, RUN) is None

    def test_the_same_clip_of_another_recipe_is_kept(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        assert append(layout, {"latents": latents(clip, recipe=OTHER_RECIPE)}) is not None
        assert clips_in(layout) == [str(clip.key)] * 2

    def test_what_comes_beside_a_dropped_clip_is_still_committed(self, layout: CacheLayout) -> None:
        (clip,) = fake_clips(1)
        appended(layout, clip)

        commit = append(layout, {"latents": latents(clip), "quarantine": quarantine_table("ab")})

        assert commit is not None
        assert list(commit.files) == ["quarantine"]

    def test_the_loser_of_a_race_takes_the_next_number(
        self, layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = fake_clips(2)
        heads = iter([-1, 0])
        appended(layout, a)
        monkeypatch.setattr(CommitLog, "head", lambda self: next(heads))

        commit = append(layout, {"latents": latents(a, b)})

        assert commit is not None
        assert commit.number == 1
        assert commit.files["latents"].num_rows == 1


class CountingStorage(LocalStorage):
    """A folder that notes what it is asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, str]] = []

    def read(self, name: str) -> bytes:
        self.asked.append(("read", name))
        return super().read(name)

    def exists(self, name: str) -> bool:
        self.asked.append(("exists", name))
        return super().exists(name)

    def list(self, folder: str) -> Iterator[StoredFile]:
        self.asked.append(("list", folder))
        return super().list(folder)


class TestCost:
    def test_a_driver_reads_only_what_it_has_not_seen(self, layout: CacheLayout) -> None:
        clips = fake_clips(7)
        for clip in clips[:4]:
            appended(layout, clip)
        storage = CountingStorage(Path(layout.url))
        driver = CommitLog(CacheLayout(storage), seen=3)
        later = [appended(layout, clip) for clip in clips[4:6]]

        driver.append({"latents": latents(clips[6])}, RUN)

        assert {name for asked, name in storage.asked if asked == "read"} == {
            *(layout.commit(number) for number in (3, 4, 5)),
            *(layout.rows(commit.files["latents"].sha256) for commit in later),
        }
        assert [name for asked, name in storage.asked if asked == "exists"] == [
            layout.commit(number) for number in (4, 5, 6)
        ]
        assert "list" not in dict(storage.asked)

    def test_an_append_costs_the_same_however_long_the_log_is(self, layout: CacheLayout) -> None:
        clips = fake_clips(30)
        storage = CountingStorage(Path(layout.url))
        driver = CommitLog(CacheLayout(storage))
        asked = []
        for clip in clips:
            storage.asked.clear()
            driver.append({"latents": latents(clip)}, RUN)
            asked.append(len(storage.asked))

        assert len(set(asked[2:])) == 1
        assert asked[-1] <= 5

    def test_a_number_far_beyond_the_log_is_refused_at_once(self, layout: CacheLayout) -> None:
        appended(layout, *fake_clips(1))

        with pytest.raises(DamagedError, match="missing from the log") as caught:
            list(CommitLog(layout).commits(0, 10**12))
        assert caught.value.path == "commits/000000000001.json"


def append_many(root: str, start: Any, own: range, shared: range) -> None:
    """Commits one clip of its own and one that all processes commit, again and again."""
    clips = fake_clips(max(own.stop, shared.stop))
    log = CommitLog(find_cache(root))
    start.wait()
    for mine, ours in zip(own, shared, strict=True):
        log.append({"latents": latents(clips[mine], clips[ours])}, RUN)


def append_forever(root: str, first: int) -> None:
    """Commits one clip after the other until it is killed."""
    log = CommitLog(find_cache(root))
    for clip in fake_clips(first + 1000)[first:]:
        log.append({"latents": latents(clip)}, RUN)


class TestProcesses:
    def test_racing_processes_lose_no_commit_and_double_no_clip(self, layout: CacheLayout) -> None:
        num_processes, num_commits = 4, 10
        start = PROCESSES.Barrier(num_processes)
        processes = [
            PROCESSES.Process(
                target=append_many,
                args=(
                    layout.url,
                    start,
                    range(num_commits * (n + 1), num_commits * (n + 2)),
                    range(num_commits),
                ),
            )
            for n in range(num_processes)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

        assert [process.exitcode for process in processes] == [0] * num_processes
        assert CommitLog(layout).numbers() == list(range(num_processes * num_commits))
        # 40 clips of their own, and the 10 they all committed once each; the chain is walked too.
        expected = keys(*fake_clips(num_commits * (num_processes + 1)))
        assert sorted(clips_in(layout)) == expected
        assert not list(Path(layout.url).rglob(".partial-*"))

    def test_a_killed_process_leaves_a_whole_log(self, layout: CacheLayout) -> None:
        log = CommitLog(layout)
        for kill in range(2):
            before = log.head()
            process = PROCESSES.Process(target=append_forever, args=(layout.url, 1000 * kill))
            process.start()
            while log.head() < before + 2 + kill and process.is_alive():
                time.sleep(0.001)
            process.kill()
            process.join()

            assert process.exitcode == -signal.SIGKILL
            clips = clips_in(layout)
            assert len(clips) == len(set(clips)) == log.head() + 1

        assert appended(layout, *fake_clips(4000)[3999:]).number == log.head()


class TestDamage:
    def test_a_missing_commit_is_damage(self, layout: CacheLayout) -> None:
        for clip in fake_clips(3):
            appended(layout, clip)
        layout.storage.delete(layout.commit(1))

        error = damage_of(layout)
        assert error.path == "commits/000000000001.json"
        assert error.problem == "the commit is missing from the log"

    def test_a_commit_that_does_not_follow_the_one_before_is_damage(
        self, layout: CacheLayout
    ) -> None:
        for clip in fake_clips(3):
            appended(layout, clip)
        forged = Commit(number=1, previous="0" * 64, files={}, run={})
        layout.storage.replace(layout.commit(1), forged.to_json())

        error = damage_of(layout)
        assert error.path == "commits/000000000001.json"
        assert error.problem == "the commit it follows is not the 0 that is there"

    def test_a_first_commit_that_follows_one_is_damage(self, layout: CacheLayout) -> None:
        forged = Commit(number=0, previous="0" * 64, files={}, run={})
        layout.storage.replace(layout.commit(0), forged.to_json())

        assert damage_of(layout).path == "commits/000000000000.json"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x00\xff",
            b"[]",
            b"null",
            b"{}",
            sealed_json({}),
            sealed_json({"number": 0, "previous": None, "rows": [], "run": {}}),
            sealed_json({"number": 0, "previous": None, "rows": {"latents": "x"}, "run": {}}),
            sealed_json({"number": 0, "previous": None, "rows": {"latents": {}}, "run": {}}),
            sealed_json(
                {
                    "number": 0,
                    "previous": None,
                    "rows": {"latents": {"sha256": "../x", "num_rows": 1}},
                    "run": {},
                }
            ),
            sealed_json(
                {
                    "number": 0,
                    "previous": None,
                    "rows": {"latents": {"sha256": "a" * 64, "num_rows": "1"}},
                    "run": {},
                }
            ),
            sealed_json(
                {
                    "number": 0,
                    "previous": None,
                    "rows": {"strange": {"sha256": "a" * 64, "num_rows": 1}},
                    "run": {},
                }
            ),
            sealed_json({"number": 0, "previous": None, "rows": {}, "run": 5}),
            sealed_json({"number": 0, "previous": None, "rows": {}, "run": {}, "more": 1}),
            sealed_json({"number": 5, "previous": None, "rows": {}, "run": {}}),
            sealed_json({"number": "0", "previous": None, "rows": {}, "run": {}}),
            sealed_json({"number": 0, "previous": 7, "rows": {}, "run": {}}),
            b"[" * 100_000,
        ],
    )
    def test_a_file_that_is_not_a_commit_is_damage(
        self, content: bytes, layout: CacheLayout
    ) -> None:
        layout.storage.replace(layout.commit(0), content)

        assert damage_of(layout).path == "commits/000000000000.json"

    def test_a_folder_in_the_place_of_a_commit_is_damage(self, layout: CacheLayout) -> None:
        Path(layout.url, layout.commit(0)).mkdir(parents=True)

        with pytest.raises(DamagedError, match="cannot be read"):
            read_commit(layout, 0)

    def test_missing_rows_are_damage(self, layout: CacheLayout) -> None:
        file = appended(layout, *fake_clips(1)).files["latents"]
        layout.storage.delete(layout.rows(file.sha256))

        error = damage_of(layout)
        assert (error.path, error.problem) == (
            f"rows/{file.sha256}.parquet",
            "1 latents rows are missing",
        )

    def test_changed_rows_are_damage(self, layout: CacheLayout) -> None:
        file = appended(layout, *fake_clips(1)).files["latents"]
        layout.storage.replace(layout.rows(file.sha256), table_to_bytes(latents(*fake_clips(2))))

        error = damage_of(layout)
        assert (error.path, error.problem) == (
            f"rows/{file.sha256}.parquet",
            "latents rows do not hash to the file's name",
        )

    @pytest.mark.parametrize(
        "table",
        [
            latents(*fake_clips(2)),
            latents(*fake_clips(1)).drop_columns("shard"),
            latents(*fake_clips(1), shard="../../secrets"),
        ],
    )
    def test_rows_that_the_commit_cannot_mean_are_damage_even_where_they_hash(
        self, table: pa.Table, layout: CacheLayout
    ) -> None:
        content = table_to_bytes(table)
        file = RowFile(sha256=sha256_hex(content), num_rows=1)
        layout.storage.create(layout.rows(file.sha256), content)

        with pytest.raises(DamagedError) as caught:
            read_rows(layout, "latents", file)
        assert caught.value.path == f"rows/{file.sha256}.parquet"

    def test_a_damaged_log_is_not_appended_to(self, layout: CacheLayout) -> None:
        a, b = fake_clips(2)
        appended(layout, a)
        content = bytearray(layout.storage.read(layout.commit(0)))
        content[20] ^= 1
        layout.storage.replace(layout.commit(0), bytes(content))

        with pytest.raises(DamagedError):
            append(layout, {"latents": latents(b)}, seen=0)
        assert CommitLog(layout).head() == 0

    def test_nor_is_one_whose_later_commits_follow_another_than_was_seen(
        self, layout: CacheLayout
    ) -> None:
        a, b, c = fake_clips(3)
        appended(layout, a)
        appended(layout, b)
        another = Commit(number=0, previous=None, files={}, run={})
        layout.storage.replace(layout.commit(0), another.to_json())

        with pytest.raises(DamagedError) as caught:
            append(layout, {"latents": latents(c)}, seen=0)
        assert caught.value.path == "commits/000000000001.json"

    def test_a_cache_that_cannot_be_written_is_a_cache_error(self, layout: CacheLayout) -> None:
        Path(layout.url, "rows").touch()

        with pytest.raises(CacheError, match="writing failed"):
            appended(layout, *fake_clips(1))

    @pytest.mark.parametrize("seen", [-1, 0])
    def test_a_log_that_cannot_be_looked_at_is_a_cache_error_and_not_empty(
        self, layout: CacheLayout, seen: int
    ) -> None:
        class Unreachable(LocalStorage):
            def exists(self, name: str) -> bool:
                raise TimeoutError("no answer")

            def list(self, folder: str) -> Iterator[StoredFile]:
                raise TimeoutError("no answer")

        unreachable = CacheLayout(Unreachable(Path(layout.url)))

        with pytest.raises(CacheError, match=r"reading failed \(no answer\)"):
            CommitLog(unreachable, seen=seen).head()
