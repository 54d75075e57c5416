"""What every storage of a cache must do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from latents.cache.storage import Storage
from latents.recipe import sha256_hex

SHARD = bytes(range(256)) * 40
SHARD_NAME = f"shards/{sha256_hex(SHARD)}.tar"


def adopt(storage: Storage, name: str, content: bytes) -> None:
    file = storage.folder_aside() / "finished"
    file.write_bytes(content)
    storage.adopt(file, name)


class StorageTests:
    """Inherited by the tests of each storage, which has a fixture ``storage``: an empty one."""

    def test_what_is_created_is_read_back(self, storage: Storage) -> None:
        assert storage.create("commits/000000000000.json", b"first")

        assert storage.read("commits/000000000000.json") == b"first"
        assert storage.exists("commits/000000000000.json")

    def test_a_file_is_created_once(self, storage: Storage) -> None:
        assert storage.create("a", b"first")
        assert not storage.create("a", b"second")
        assert not storage.create("a", b"first")

        assert storage.read("a") == b"first"

    def test_a_missing_file_is_told(self, storage: Storage) -> None:
        assert not storage.exists("rows/a")
        with pytest.raises(FileNotFoundError):
            storage.read("rows/a")
        for name in ("rows/a", SHARD_NAME):
            with pytest.raises(FileNotFoundError):
                storage.open(name)

    def test_replacing_takes_any_content_and_none(self, storage: Storage) -> None:
        storage.replace("refs/current.json", b"first")
        storage.replace("refs/current.json", b"")
        assert storage.read("refs/current.json") == b""

        storage.replace("refs/current.json", b"third")
        assert storage.read("refs/current.json") == b"third"

    def test_a_swap_needs_the_expected_content(self, storage: Storage) -> None:
        assert not storage.swap("ref", b"second", expected=b"first")
        assert not storage.exists("ref")

        assert storage.swap("ref", b"first", expected=None)
        assert not storage.swap("ref", b"second", expected=None)
        assert not storage.swap("ref", b"second", expected=b"other")
        assert storage.read("ref") == b"first"

        assert storage.swap("ref", b"second", expected=b"first")
        assert storage.read("ref") == b"second"

    def test_files_below_a_folder_are_listed(self, storage: Storage) -> None:
        for name in ("rows/a", "rows/deep/b", "rows2/c", "d"):
            storage.create(name, name.encode())

        assert {file.name: file.num_bytes for file in storage.list("rows")} == {
            "rows/a": 6,
            "rows/deep/b": 11,
        }
        assert {file.name for file in storage.list("")} == {"rows/a", "rows/deep/b", "rows2/c", "d"}
        assert list(storage.list("none")) == []

    def test_files_have_the_time_of_their_writing(self, storage: Storage) -> None:
        storage.create("a", b"")

        (file,) = storage.list("")
        assert file.modified_seconds == pytest.approx(time.time(), abs=2)  # S3's are whole seconds

    def test_a_deleted_file_is_gone(self, storage: Storage) -> None:
        storage.create("a", b"content")
        adopt(storage, SHARD_NAME, SHARD)

        for name in ("a", SHARD_NAME):
            storage.delete(name)
            assert not storage.exists(name)
            with pytest.raises(FileNotFoundError):
                storage.open(name)
        storage.delete("a")

    @pytest.mark.parametrize("name", [SHARD_NAME, "shards/of-another-name.tar"])
    def test_a_finished_file_is_moved_to_its_name(self, storage: Storage, name: str) -> None:
        adopt(storage, name, SHARD)

        assert [(file.name, file.num_bytes) for file in storage.list("")] == [(name, len(SHARD))]
        assert not (storage.folder_aside() / "finished").exists()
        with storage.open(name) as file:
            file.seek(300)
            assert file.read(4) == SHARD[300:304]
            file.seek(0)
            assert file.read() == SHARD

    def test_an_open_file_is_that_of_the_opening(self, storage: Storage) -> None:
        storage.replace("a", b"first")
        with storage.open("a") as file:
            storage.replace("a", b"other")
            assert file.read() == b"first"

        with storage.open("a") as file:
            assert file.read() == b"other"

    def test_of_many_writers_one_creates(self, storage: Storage) -> None:
        names = [f"commits/{number}" for number in range(20)]

        def create_all(writer: int) -> list[str]:
            return [name for name in names if storage.create(name, b"by %d" % writer)]

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create_all, range(8)))

        assert sorted(name for names in won for name in names) == sorted(names)
        for writer, created in enumerate(won):
            assert {storage.read(name) for name in created} <= {b"by %d" % writer}

    def test_no_swap_is_lost_among_many(self, storage: Storage) -> None:
        storage.create("counter", b"0")

        def count(_: int) -> None:
            for _ in range(25):
                is_ours = False
                while not is_ours:
                    found = storage.read("counter")
                    is_ours = storage.swap("counter", b"%d" % (int(found) + 1), expected=found)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count, range(4)))

        assert storage.read("counter") == b"100"
