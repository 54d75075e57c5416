"""Making a cache, and recognising one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from latents.cache.layout import FORMAT, FORMAT_VERSION, create_cache, find_cache
from latents.errors import CacheError, DamagedError
from latents.recipe import open_sealed_json, sealed_json


def test_a_new_cache_says_its_format_and_has_its_folders(tmp_path: Path) -> None:
    layout = create_cache(tmp_path / "deep" / "cache")

    assert open_sealed_json(layout.format_file.read_bytes()) == {
        "format": "mmldm-cache",
        "version": 1,
    }
    assert {path.name for path in layout.root.iterdir() if path.is_dir()} == {
        "recipes",
        "shards",
        "rows",
        "commits",
        "refs",
    }


def test_paths_are_named_by_what_they_hold(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)

    assert layout.commit(7).relative_to(tmp_path) == Path("commits/000000000007.json")
    assert layout.recipe("ab").relative_to(tmp_path) == Path("recipes/ab.json")
    assert layout.rows("ab").relative_to(tmp_path) == Path("rows/ab.parquet")
    assert layout.ref("current").relative_to(tmp_path) == Path("refs/current.json")


def test_making_a_cache_again_opens_it(tmp_path: Path) -> None:
    first = create_cache(tmp_path)
    content = first.format_file.read_bytes()

    assert create_cache(tmp_path) == first == find_cache(tmp_path)
    assert first.format_file.read_bytes() == content


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

    with pytest.raises(CacheError, match=r"file: writing failed \(File exists\)"):
        create_cache(tmp_path / "file")


def test_a_folder_without_format_file_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"is not a cache .* make one with `mmldm ingest"):
        find_cache(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"format": FORMAT, "version": FORMAT_VERSION + 1},
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
