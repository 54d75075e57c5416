"""A cache in a folder: the contract of storages, and what only a folder has."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
from io import FileIO
from pathlib import Path

import pytest

from latents.cache.local_storage import LocalStorage
from latents.cache.open_storage import open_storage
from latents.durable import partial_path
from tests.latents.storage_contract import StorageTests


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "cache")


class TestLocalStorage(StorageTests):
    """The contract."""


def test_a_path_opens_a_folder(tmp_path: Path) -> None:
    for url in (tmp_path, str(tmp_path)):
        storage = open_storage(url)
        assert isinstance(storage, LocalStorage)
        assert storage.url == str(tmp_path)


def test_names_are_paths_below_the_folder(storage: LocalStorage) -> None:
    storage.create("deep/er/file", b"content")

    assert (storage.root / "deep" / "er" / "file").read_bytes() == b"content"


def test_a_copy_in_another_process_is_of_the_same_folder(storage: LocalStorage) -> None:
    storage.create("a", b"content")

    assert pickle.loads(pickle.dumps(storage)).read("a") == b"content"


def test_nothing_is_made_by_looking(storage: LocalStorage) -> None:
    assert not storage.exists("a")
    assert list(storage.list("")) == []
    storage.delete("a")

    assert not storage.root.exists()


def test_files_half_written_are_listed_and_locks_are_not(storage: LocalStorage) -> None:
    storage.swap("refs/current.json", b"", expected=None)
    partial_path(storage.root / "refs").touch()

    names = sorted(file.name for file in storage.list("refs"))

    assert (storage.root / "refs" / ".lock").exists()
    assert names[0].startswith("refs/.partial-")
    assert names[1:] == ["refs/current.json"]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(storage: LocalStorage) -> None:
    storage.create("commits", b"a file where a folder should be")

    with pytest.raises(NotADirectoryError):
        list(storage.list("commits"))


def test_a_file_that_vanishes_while_it_is_listed_is_passed_over(storage: LocalStorage) -> None:
    for name in "ab":
        storage.create(name, b"")

    found = [next(names := storage.list(""))]
    storage.delete({"a": "b", "b": "a"}[found[0].name])
    found.extend(names)

    assert len(found) == 1


def test_a_swap_that_fails_leaves_the_content_and_lets_others_swap(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.replace("ref", b"first")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            storage.swap("ref", b"second", expected=b"first")

    assert storage.read("ref") == b"first"
    assert storage.swap("ref", b"second", expected=b"first")
    assert sorted(file.name for file in storage.list("")) == ["ref"]


def test_a_folder_in_the_place_of_a_file_is_no_missing_file(storage: LocalStorage) -> None:
    (storage.root / "a").mkdir(parents=True)

    with pytest.raises(IsADirectoryError):
        storage.read("a")
    with pytest.raises(OSError, match="Is a directory"):
        storage.replace("a", b"")
    with pytest.raises(OSError, match=r"directory|not permitted"):
        storage.delete("a")


def test_reading_at_a_position_needs_a_plain_file(storage: LocalStorage) -> None:
    storage.create("a", b"0123456789")

    with storage.open("a") as file:
        assert isinstance(file, FileIO)  # unbuffered: what pread gets is what is there
        assert os.pread(file.fileno(), 3, 4) == b"456"


def test_a_finished_file_is_renamed_and_its_name_made_durable(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = storage.folder_aside() / ".partial-x"
    aside.write_bytes(b"tensors")
    inode = aside.stat().st_ino
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))

    storage.adopt(aside, "shards/a.tar")

    assert (storage.root / "shards" / "a.tar").stat().st_ino == inode
    assert synced == [(storage.root / "shards").stat().st_ino]
    assert [file.name for file in storage.list("")] == ["shards/a.tar"]


@pytest.mark.parametrize("use", ["create", "swap", "folder_aside"])
def test_new_folders_are_made_durable_too(
    storage: LocalStorage, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    real = os.fsync

    def note(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    match use:
        case "create":
            storage.create("shards/a", b"")
        case "swap":
            storage.swap("shards/a", b"", expected=None)
        case _:
            storage.folder_aside()

    # A folder's name lies in the folder above it.
    assert {storage.root.parent.stat().st_ino, storage.root.stat().st_ino} <= synced


def test_room_is_that_of_the_disk_even_before_there_is_a_folder(storage: LocalStorage) -> None:
    free = storage.free_bytes()

    assert free == pytest.approx(shutil.disk_usage(storage.root.parent).free, rel=0.1)
    assert not storage.root.exists()
