"""Open shards are bounded, and none is closed while it is read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest

from latents.cache.local_storage import LocalStorage
from latents.cache.open_shards import OpenShards


class CountingStorage(LocalStorage):
    """Counts how often it opened a file, and this process's open files since it was made."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.num_opened = 0
        self._before = num_descriptors()

    def open(self, name: str) -> FileIO:
        self.num_opened += 1
        return super().open(name)

    @property
    def num_open(self) -> int:
        return num_descriptors() - self._before


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    for name in "abcd":
        (tmp_path / name).write_text(name)
    return CountingStorage(tmp_path)


def test_a_shard_is_opened_once(storage: CountingStorage) -> None:
    shards = OpenShards(storage, max_open=2)

    assert shards.at_hand("a") is None
    assert shards.open("a") is shards.open("a") is shards.at_hand("a")
    assert storage.num_opened == 1
    shards.close()


def test_no_more_are_kept_open_than_may_be(storage: CountingStorage) -> None:
    shards = OpenShards(storage, max_open=2)
    for name in "abcdab":
        shards.open(name)
        assert len(shards) == storage.num_open <= 2

    shards.close()
    assert storage.num_open == 0


def test_one_that_is_being_read_stays_open_until_it_was(storage: CountingStorage) -> None:
    shards = OpenShards(storage, max_open=1)
    reading = shards.open("a")
    shards.open("b")

    assert os.pread(reading.descriptor, 1, 0) == b"a"
    assert storage.num_open == 2
    del reading
    assert storage.num_open == 1
    shards.close()


def test_threads_that_open_one_at_once_share_it(storage: CountingStorage) -> None:
    shards = OpenShards(storage, max_open=2)
    with ThreadPoolExecutor(8) as pool:
        opened = set(pool.map(lambda _: shards.open("a"), range(64)))

    assert shards.at_hand("a") in opened
    opened.clear()
    assert storage.num_open == 1
    shards.close()


def test_a_missing_file_is_told_and_not_kept(storage: CountingStorage) -> None:
    shards = OpenShards(storage, max_open=2)
    with pytest.raises(FileNotFoundError):
        shards.open("e")
    assert len(shards) == 0
