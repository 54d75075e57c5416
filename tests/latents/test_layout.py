"""Making a cache, and recognising one."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from latents.cache.layout import (
    FORMAT,
    FORMAT_VERSION,
    CacheLayout,
    check_format,
    create_cache,
    find_cache,
)
from latents.errors import CacheError, DamagedError
from latents.recipe import open_sealed_json, sealed_json


def test_a_new_cache_is_one_file_that_says_its_format(tmp_path: Path) -> None:
    layout = create_cache(tmp_path / "deep" / "cache")

    assert layout.url == str(tmp_path / "deep" / "cache")
    assert open_sealed_json(layout.storage.read("cache.json")) == {
        "format": "mmldm-cache",
        "version": 2,
    }
    assert [file.name for file in layout.storage.list("")] == ["cache.json"]


def test_files_are_named_by_what_they_hold() -> None:
    assert CacheLayout.commit(7) == "commits/000000000007.json"
    assert CacheLayout.checkpoint(255) == "checkpoints/000000000255.json"
    assert CacheLayout.recipe("ab") == "recipes/ab.json"
    assert CacheLayout.rows("ab") == "rows/ab.parquet"
    assert CacheLayout.shard("ab.tar") == "shards/ab.tar"
    assert CacheLayout.ref("current") == "refs/current.json"


def test_making_a_cache_again_opens_it(tmp_path: Path) -> None:
    first = create_cache(tmp_path)
    inode = (tmp_path / "cache.json").stat().st_ino
    first.storage.create("shards/a.tar", b"")

    for again in (create_cache(tmp_path), find_cache(tmp_path), find_cache(str(tmp_path))):
        assert again.url == first.url
        assert again.storage.exists("shards/a.tar")
    assert (tmp_path / "cache.json").stat().st_ino == inode


def test_a_cache_is_found_where_it_was_moved_to(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "moved")

    assert find_cache(tmp_path / "moved").storage.exists("cache.json")


def test_a_layout_goes_to_other_processes(tmp_path: Path) -> None:
    layout = pickle.loads(pickle.dumps(create_cache(tmp_path)))

    check_format(layout)


def test_many_drivers_may_make_one_cache_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    failures: list[Exception] = []

    def make() -> None:
        start.wait()
        try:
            create_cache(tmp_path / "cache")
        except CacheError as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    find_cache(tmp_path / "cache")


def test_what_a_crash_left_does_not_stop_a_cache_from_being_made(tmp_path: Path) -> None:
    (tmp_path / ".partial-x").write_bytes(b"{")

    create_cache(tmp_path)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(CacheError, match=r"is not empty and holds no cache\.json"):
        create_cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_place_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CacheError, match=r"file: writing failed \(Not a directory\)"):
        create_cache(tmp_path / "file")
    with pytest.raises(CacheError, match="is not a cache"):
        find_cache(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_format_file_is_not_a_cache(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match=r"is not a cache .* make one with `mmldm ingest"):
        find_cache(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_format_file_that_cannot_be_read_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "cache.json").mkdir()

    with pytest.raises(CacheError, match=r"cache.json cannot be read \(Is a directory\)"):
        find_cache(tmp_path)


def test_a_url_of_no_known_kind_is_a_cache_error() -> None:
    for use in (find_cache, create_cache):
        with pytest.raises(CacheError, match="ftp://"):
            use("ftp://example.org/cache")


@pytest.mark.parametrize(
    "content",
    [
        {"format": FORMAT, "version": FORMAT_VERSION + 1},
        {"format": FORMAT, "version": 1},
        {"format": "else", "version": FORMAT_VERSION},
        {},
    ],
)
def test_another_format_is_refused_with_both_versions(
    content: dict[str, str | int], tmp_path: Path
) -> None:
    (tmp_path / "cache.json").write_bytes(sealed_json(content))

    with pytest.raises(
        CacheError, match=r"has cache format .*; this version reads \('mmldm-cache'"
    ):
        find_cache(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"version":1,"seal":"x"}', b"\xff"])
def test_a_damaged_format_file_is_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_bytes(content)

    for use in (find_cache, create_cache):
        with pytest.raises(DamagedError) as caught:
            use(tmp_path)
        assert caught.value.path == "cache.json"
