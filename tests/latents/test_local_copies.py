"""Copies of objects on this machine stay within their room."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from latents.cache.local_copies import LocalCopies


def keep(copies: LocalCopies, name: str, *, num_bytes: int = 1000) -> None:
    file = copies.folder_aside() / "fetched"
    file.write_bytes(name[-1:].encode() * num_bytes)
    copies.keep(file, name).close()


def names_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_opened_by_its_name(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    assert copies.open("shards/a") is None

    keep(copies, "shards/a", num_bytes=3)

    opened = copies.open("shards/a")
    assert opened is not None
    with opened:
        assert opened.read() == b"aaa"
    copies.remove("shards/a")
    assert copies.open("shards/a") is None
    copies.remove("shards/a")


def test_those_not_opened_for_the_longest_go_first(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    keep(copies, "shards/a")
    keep(copies, "shards/b")
    opened = copies.open("shards/a")
    assert opened is not None
    opened.close()

    keep(copies, "rows/c")

    assert names_of(tmp_path) == {"a", "c"}


def test_the_newest_stays_however_large(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    keep(copies, "a")

    keep(copies, "b", num_bytes=3000)

    assert names_of(tmp_path) == {"b"}


def test_copies_within_their_room_all_stay(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2000)

    keep(copies, "a")
    keep(copies, "b")

    assert names_of(tmp_path) == {"a", "b"}


def test_an_open_copy_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=1)
    keep(copies, "a", num_bytes=3)
    opened = copies.open("a")
    assert opened is not None

    with opened:
        keep(copies, "b")
        assert names_of(tmp_path) == {"b"}
        assert opened.read() == b"aaa"


def test_files_aside_of_killed_runs_are_removed_in_time(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    week_seconds = 7 * 86_400
    for name, age_seconds in (("half", week_seconds - 60), ("abandoned", week_seconds + 60)):
        file = copies.folder_aside() / name
        file.write_bytes(b"half")
        os.utime(file, times=(time.time() - age_seconds,) * 2)

    keep(copies, "a")

    assert names_of(tmp_path) == {"half", "a"}


def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    held = []

    def hold(_: int) -> None:
        with copies.locked("shards/a"):
            held.append("begins")
            time.sleep(0.01)
            held.append("ends")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))

    assert held == ["begins", "ends"] * 4
