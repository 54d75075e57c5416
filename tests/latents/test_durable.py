"""Files are whole or absent, and of many writers exactly one creates a name."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from latents.durable import (
    create_file,
    make_folder,
    reading_from,
    replace_file,
    writing_to,
    written_aside,
)
from latents.errors import CacheError

CONTENT_BYTES = 1 << 16
SPAWN = multiprocessing.get_context("spawn")


def content_of(writer: int) -> bytes:
    return bytes([writer]) * CONTENT_BYTES


def race(folder: str, writer: int, num_files: int, start: Any, winners: Any) -> None:
    start.wait()
    for number in range(num_files):
        if create_file(Path(folder) / str(number), content_of(writer)):
            winners.put((number, writer))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_created_file_has_its_content(tmp_path: Path) -> None:
    assert create_file(tmp_path / "a", b"content")

    assert (tmp_path / "a").read_bytes() == b"content"
    assert names(tmp_path) == ["a"]


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    create_file(tmp_path / "a", b"first")

    assert not create_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_replacing_gives_the_new_content(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"first")
    replace_file(tmp_path / "a", b"second")

    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_of_racing_threads_exactly_one_creates_a_file(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    created: list[int] = []

    def write(writer: int) -> None:
        start.wait()
        if create_file(tmp_path / "a", content_of(writer)):
            created.append(writer)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(created) == 1
    assert (tmp_path / "a").read_bytes() == content_of(created[0])
    assert names(tmp_path) == ["a"]


def test_of_racing_processes_exactly_one_creates_each_file(tmp_path: Path) -> None:
    num_processes, num_files = 3, 20
    start, winners = SPAWN.Barrier(num_processes), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=race, args=(str(tmp_path), writer, num_files, start, winners))
        for writer in range(num_processes)
    ]
    for process in processes:
        process.start()
    won = dict(winners.get(timeout=60) for _ in range(num_files))
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * num_processes
    assert winners.empty()  # no second winner of any file
    assert sorted(won) == list(range(num_files))
    for number, writer in won.items():
        assert (tmp_path / str(number)).read_bytes() == content_of(writer)
    assert len(names(tmp_path)) == num_files


def test_no_reader_ever_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path, done = tmp_path / "a", threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            if path.exists():
                seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for writer in range(20):
        replace_file(path, content_of(writer))
    done.set()
    reader.join()

    assert seen <= {content_of(writer) for writer in range(20)}


@pytest.mark.parametrize("write", [create_file, replace_file])
def test_nothing_is_left_behind_when_writing_fails(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", b"content")

    assert names(tmp_path) == []


def test_a_file_written_aside_vanishes_unless_renamed(tmp_path: Path) -> None:
    with written_aside(tmp_path) as (file, path):
        file.write(b"content")
        assert path.name.startswith(".partial-")

    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [create_file, replace_file])
def test_content_is_synced_before_it_has_its_name_and_the_name_after(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(f"{'folder' if is_folder else 'file'} {(tmp_path / 'a').exists()}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "a", b"content")

    assert events == ["file False", "folder True"]


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        create_file(tmp_path / "a", b"")
        replace_file(tmp_path / "b", b"")
    finally:
        os.umask(before)

    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


@pytest.mark.parametrize(("inside", "doing"), [(writing_to, "writing"), (reading_from, "reading")])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/deep/file"), "No space left on device"),
        (OSError("the bucket does not answer"), "the bucket does not answer"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_fault_of_the_outside_world_is_a_cache_error_that_says_what_and_where(
    inside: Any, doing: str, error: OSError, told: str
) -> None:
    with (
        pytest.raises(
            CacheError, match=f"^s3://bucket/cache: {doing} failed .{told}.[.] "
        ) as caught,
        inside("s3://bucket/cache"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("inside", [writing_to, reading_from])
def test_other_errors_pass(inside: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), inside(tmp_path):
        raise ValueError("ours")


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_the_names_of_new_folders_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))

    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")

    assert synced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]


def test_a_file_is_no_place_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(FileExistsError):
            make_folder(folder)


def test_a_failing_disk_is_a_cache_error_that_names_the_folder(tmp_path: Path) -> None:
    absent = tmp_path / "absent"

    with (
        pytest.raises(CacheError, match=r"absent: writing failed \(No such file or directory\)"),
        writing_to(absent),
    ):
        create_file(absent / "a", b"")
