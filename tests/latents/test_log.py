"""The commit log: a chain in which nothing is lost, doubled or silently changed."""

from __future__ import annotations

import io
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import Commit, CommitLog, RowFile, commit_from_json
from latents.cache.rows import rows_to_table, table_to_bytes
from latents.durable import replace_file
from latents.errors import CacheError, DamagedError
from latents.recipe import sealed_json, sha256_hex
from latents.store.protocol import StoredTensor
from latents.testing import FakeClip, fake_clips, fake_latent_row, fake_recipes, quarantine_table

RECIPE = fake_recipes()["kl.video"]
RUN = {"started": "2026-01-01T00:00:00Z"}
SPAWN = multiprocessing.get_context("spawn")


def latents(*clips: FakeClip) -> pa.Table:
    """Rows as if the tensors lay somewhere."""
    stored = StoredTensor(
        shard=f"{'0' * 64}.tar",
        offset=0,
        dtype="float16",
        shape=(8, 4, 2, 2),
        digest="0" * 64,
        crc32c=(0,) * 8,
    )
    return rows_to_table(
        "latents", [fake_latent_row(clip, "kl.video", RECIPE, stored) for clip in clips]
    )


def appended(layout: CacheLayout, *clips: FakeClip) -> Commit:
    commit = CommitLog(layout).append({"latents": latents(*clips)}, RUN)
    assert commit is not None
    return commit


def clips_in(log: CommitLog) -> list[str]:
    return [
        clip
        for commit in log.commits(0, log.head())
        for file in commit.files
        if file.kind == "latents"
        for clip in log.read_rows(file)["clip"].to_pylist()
    ]


def damage_of(log: CommitLog) -> DamagedError:
    with pytest.raises(DamagedError) as caught:
        clips_in(log)
    return caught.value


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


def test_an_empty_log_has_no_head(layout: CacheLayout) -> None:
    assert CommitLog(layout).head() == -1
    assert CommitLog(layout).numbers() == []


def test_a_commit_holds_every_kind_of_rows_at_once(layout: CacheLayout) -> None:
    table, quarantine = latents(*fake_clips(2)), quarantine_table("ab")
    log = CommitLog(layout)

    commit = log.append({"latents": table, "quarantine": quarantine}, RUN)

    assert commit is not None
    assert [(file.kind, file.num_rows) for file in commit.files] == [
        ("latents", 2),
        ("quarantine", 1),
    ]
    assert [log.read_rows(file) for file in commit.files] == [table, quarantine]
    assert commit.run == RUN


def test_commits_are_numbered_and_name_the_one_before(layout: CacheLayout) -> None:
    first, second = (appended(layout, clip) for clip in fake_clips(2))

    assert (first.number, first.previous) == (0, None)
    assert second.number == 1
    assert second.previous == sha256_hex(layout.commit(0).read_bytes()) == first.digest


def test_a_commit_is_read_back_as_it_was(layout: CacheLayout) -> None:
    commit = appended(layout, *fake_clips(1))

    assert CommitLog(layout).read(0) == commit == commit_from_json(commit.to_json())


def test_nothing_to_commit_is_no_commit(layout: CacheLayout) -> None:
    log = CommitLog(layout)

    assert log.append({"latents": latents()}, RUN) is None
    assert log.append({}, RUN) is None
    assert log.head() == -1


def test_clips_that_are_there_already_are_dropped(layout: CacheLayout) -> None:
    a, b, c = fake_clips(3)
    appended(layout, a, b)

    commit = CommitLog(layout).append({"latents": latents(b, c)}, RUN)

    assert commit is not None
    assert clips_in(CommitLog(layout)) == [str(clip.key) for clip in (a, b, c)]
    assert CommitLog(layout).append({"latents": latents(a, c)}, RUN) is None


def test_clips_committed_since_a_drivers_snapshot_are_dropped(layout: CacheLayout) -> None:
    a, b, c = fake_clips(3)
    appended(layout, a)
    driver = CommitLog(layout, seen=0)
    appended(layout, b)

    driver.append({"latents": latents(b, c)}, RUN)

    assert clips_in(driver) == [str(clip.key) for clip in (a, b, c)]


def test_the_same_clip_of_another_recipe_is_kept(layout: CacheLayout) -> None:
    (clip,) = fake_clips(1)
    appended(layout, clip)
    table = latents(clip)
    other = table.set_column(
        table.schema.get_field_index("recipe"), table.schema.field("recipe"), pa.array(["f" * 64])
    )

    assert CommitLog(layout).append({"latents": other}, RUN) is not None
    assert clips_in(CommitLog(layout)) == [str(clip.key)] * 2


def test_what_comes_beside_a_dropped_clip_is_still_committed(layout: CacheLayout) -> None:
    (clip,) = fake_clips(1)
    appended(layout, clip)

    commit = CommitLog(layout).append(
        {"latents": latents(clip), "quarantine": quarantine_table("ab")}, RUN
    )

    assert commit is not None
    assert [file.kind for file in commit.files] == ["quarantine"]


def append_many(root: str, start: Any, own: range, shared: range) -> None:
    """Commits one clip of its own and one that all processes commit, again and again."""
    clips = fake_clips(max(own.stop, shared.stop))
    log = CommitLog(CacheLayout(Path(root)))
    start.wait()
    for mine, ours in zip(own, shared, strict=True):
        log.append({"latents": latents(clips[mine], clips[ours])}, RUN)


@pytest.mark.slow
def test_racing_processes_lose_no_commit_and_double_no_clip(layout: CacheLayout) -> None:
    num_processes, num_commits = 4, 20
    start = SPAWN.Barrier(num_processes)
    processes = [
        SPAWN.Process(
            target=append_many,
            args=(
                str(layout.root),
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
    log = CommitLog(layout)
    assert log.numbers() == list(range(num_processes * num_commits))
    # 80 clips of their own, and the 20 they all committed once each; the chain is walked too.
    expected = [str(clip.key) for clip in fake_clips(num_commits * (num_processes + 1))]
    assert sorted(clips_in(log)) == sorted(expected)
    assert not list(layout.root.rglob(".partial-*"))


def append_forever(root: str, first: int) -> None:
    """Commits one clip after the other until it is killed."""
    log = CommitLog(CacheLayout(Path(root)))
    for clip in fake_clips(first + 1000)[first:]:
        log.append({"latents": latents(clip)}, RUN)


def test_a_killed_process_leaves_a_whole_log(layout: CacheLayout) -> None:
    log = CommitLog(layout)
    for kill in range(3):
        before = log.head()
        process = SPAWN.Process(target=append_forever, args=(str(layout.root), 1000 * kill))
        process.start()
        while log.head() < before + 2 + kill and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()

        assert process.exitcode == -signal.SIGKILL
        clips = clips_in(log)
        assert len(clips) == len(set(clips)) == log.head() + 1

    assert appended(layout, *fake_clips(4000)[3999:]).number == log.head()


def test_the_loser_of_a_race_takes_the_next_number(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = fake_clips(2)
    log = CommitLog(layout)
    heads = iter([-1, 0])
    appended(layout, a)
    monkeypatch.setattr(CommitLog, "head", lambda self: next(heads))

    commit = log.append({"latents": latents(a, b)}, RUN)

    assert commit is not None
    assert commit.number == 1
    assert commit.files[0].num_rows == 1


def test_a_missing_commit_is_damage(layout: CacheLayout) -> None:
    for clip in fake_clips(3):
        appended(layout, clip)
    layout.commit(1).unlink()

    assert damage_of(CommitLog(layout)).path == "commits/000000000001.json"


def test_a_commit_that_does_not_follow_the_one_before_is_damage(layout: CacheLayout) -> None:
    for clip in fake_clips(3):
        appended(layout, clip)
    forged = Commit(number=1, previous="0" * 64, files=(), run={})
    replace_file(layout.commit(1), forged.to_json())

    error = damage_of(CommitLog(layout))
    assert error.path == "commits/000000000001.json"
    assert error.problem == "the commit it follows is not the 0 that is there"


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
def test_a_file_that_is_not_a_commit_is_damage(content: bytes, layout: CacheLayout) -> None:
    replace_file(layout.commit(0), content)

    assert damage_of(CommitLog(layout)).path == "commits/000000000000.json"


def test_a_folder_in_the_place_of_a_commit_is_damage(layout: CacheLayout) -> None:
    layout.commit(0).mkdir()

    assert damage_of(CommitLog(layout)).path == "commits/000000000000.json"


def test_other_files_beside_the_commits_are_passed_over(layout: CacheLayout) -> None:
    appended(layout, *fake_clips(1))
    for name in ("notes.json", "000000000009 (copy).json", ".000000000009.json", ".partial-x"):
        (layout.root / "commits" / name).touch()

    assert CommitLog(layout).numbers() == [0]


def test_missing_rows_are_damage(layout: CacheLayout) -> None:
    (file,) = appended(layout, *fake_clips(1)).files
    layout.rows(file.sha256).unlink()

    error = damage_of(CommitLog(layout))
    assert (error.path, error.problem) == (
        f"rows/{file.sha256}.parquet",
        "1 latents rows are missing",
    )


def test_changed_rows_are_damage(layout: CacheLayout) -> None:
    (file,) = appended(layout, *fake_clips(1)).files
    replace_file(layout.rows(file.sha256), table_to_bytes(latents(*fake_clips(2))))

    assert damage_of(CommitLog(layout)).path == f"rows/{file.sha256}.parquet"


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def with_column(name: str, values: list[Any], column_type: pa.DataType | None = None) -> pa.Table:
    table = latents(*fake_clips(1))
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, pa.array(values, type=column_type))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1 no parquet PAR1",
        parquet(pa.table({"clip": ["a"]})),
        parquet(latents(*fake_clips(1)).drop_columns("shard")),
        parquet(with_column("offset", ["not a number"])),
        parquet(with_column("clip", [None], pa.string())),
        parquet(with_column("offset", [-1])),
        parquet(with_column("shard", ["../../secrets.tar"])),
        parquet(with_column("shard", ["/etc/passwd"])),
        parquet(with_column("recipe", ["x/../y"])),
        parquet(with_column("dtype", ["object"])),
        parquet(with_column("shape", [[]], pa.list_(pa.int64()))),
        parquet(with_column("shape", [[8, -4, 2, 2]])),
        parquet(with_column("shape", [[8, None, 2, 2]])),
        parquet(with_column("crc32c", [[1, 2]])),
        parquet(latents(*fake_clips(2))),
    ],
)
def test_rows_of_another_form_are_damage_even_where_they_hash(
    content: bytes, layout: CacheLayout
) -> None:
    sha256 = sha256_hex(content)
    layout.rows(sha256).write_bytes(content)

    with pytest.raises(DamagedError) as caught:
        CommitLog(layout).read_rows(RowFile(kind="latents", sha256=sha256, num_rows=1))
    assert caught.value.path == f"rows/{sha256}.parquet"


def test_a_damaged_log_is_not_appended_to(layout: CacheLayout) -> None:
    a, b = fake_clips(2)
    appended(layout, a)
    content = bytearray(layout.commit(0).read_bytes())
    content[20] ^= 1
    replace_file(layout.commit(0), bytes(content))

    with pytest.raises(DamagedError):
        CommitLog(layout, seen=0).append({"latents": latents(b)}, RUN)
    assert CommitLog(layout).head() == 0


def test_a_cache_that_cannot_be_written_is_a_cache_error(layout: CacheLayout) -> None:
    (layout.root / "rows").rmdir()

    with pytest.raises(CacheError, match="writing failed"):
        appended(layout, *fake_clips(1))


def test_equal_rows_are_one_file(layout: CacheLayout) -> None:
    clips = fake_clips(2)

    assert table_to_bytes(latents(*clips)) == table_to_bytes(latents(*clips))
