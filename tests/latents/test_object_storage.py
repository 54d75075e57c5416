"""A bucket keeps the contract of a storage, with copies of its objects on this machine."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from latents.cache.object_storage import ObjectStorage, open_object_storage
from latents.cache.open_storage import open_storage
from latents.cache.storage import Storage
from latents.errors import DamagedError
from latents.recipe import sha256_hex
from tests.latents.s3_server import S3Server
from tests.latents.storage_contract import SHARD, SHARD_NAME, StorageTests, adopt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path) -> ObjectStorage:
    return open_object_storage(s3_url, local=tmp_path / "local")


@pytest.fixture
def elsewhere(s3_url: str, tmp_path: Path) -> ObjectStorage:
    """The same bucket on another machine."""
    return open_object_storage(s3_url, local=tmp_path / "elsewhere", local_bytes=2500)


def local_copies(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.rglob("*.tar")}


class TestS3(StorageTests):
    @pytest.fixture
    def storage(self, bucket: ObjectStorage) -> Storage:
        return bucket


class TestMemory(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_object_storage("memory://", local=tmp_path)


def test_a_url_opens_a_bucket_and_asks_it_nothing(s3: S3Server, s3_url: str) -> None:
    storage = open_storage(s3_url)

    assert storage.url == s3_url
    assert storage.free_bytes() is None
    assert s3.requests == []


def test_two_prefixes_of_a_bucket_are_two_caches(s3_url: str, tmp_path: Path) -> None:
    one, other = (
        open_object_storage(f"{s3_url}/{name}", local=tmp_path / name) for name in ("a", "ab")
    )
    one.create("cache.json", b"one")

    assert list(other.list("")) == []
    assert other.create("cache.json", b"other")
    assert one.read("cache.json") == b"one"


def test_a_large_file_is_moved_in_parts(
    s3: S3Server, bucket: ObjectStorage, elsewhere: ObjectStorage
) -> None:
    content = os.urandom(21 * 2**20 + 1)
    name = f"shards/{sha256_hex(content)}.tar"

    adopt(bucket, name, content)
    with elsewhere.open(name) as file:
        assert file.read() == content

    assert sum("partNumber=" in request for request in s3.requests) == 5
    assert sum(request.startswith("GET") for request in s3.requests) == 5


def test_an_object_is_fetched_once_however_many_open_it(
    s3: S3Server, bucket: ObjectStorage, elsewhere: ObjectStorage
) -> None:
    adopt(bucket, SHARD_NAME, SHARD)
    s3.requests.clear()

    def read(_: int) -> bytes:
        with elsewhere.open(SHARD_NAME) as file:
            return file.read()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(8))) == [SHARD] * 8

    assert [request.split()[0] for request in s3.requests] == ["HEAD", "GET"]


def test_an_adopted_file_needs_no_fetching(s3: S3Server, bucket: ObjectStorage) -> None:
    adopt(bucket, SHARD_NAME, SHARD)
    s3.requests.clear()

    with bucket.open(SHARD_NAME) as file:
        assert file.read() == SHARD
    assert s3.requests == []


def test_a_damaged_object_is_told_and_not_kept(bucket: ObjectStorage, tmp_path: Path) -> None:
    bucket.replace(SHARD_NAME, b"!" + SHARD[1:])

    for _ in range(2):
        with pytest.raises(DamagedError, match=f"{SHARD_NAME} at byte 0: .* not to its name"):
            bucket.open(SHARD_NAME)
    assert [path for path in tmp_path.rglob("*") if path.stat().st_size >= len(SHARD)] == []

    bucket.replace(SHARD_NAME, SHARD)
    with bucket.open(SHARD_NAME) as file:
        assert file.read() == SHARD


def test_copies_take_no_more_room_than_they_may(
    bucket: ObjectStorage, elsewhere: ObjectStorage, tmp_path: Path
) -> None:
    contents = [bytes([number]) * 1000 for number in range(3)]
    names = [f"shards/{sha256_hex(content)}.tar" for content in contents]
    for name, content in zip(names, contents, strict=True):
        bucket.replace(name, content)

    for name in (names[0], names[1], names[0], names[2]):
        elsewhere.open(name).close()

    assert local_copies(tmp_path) == {Path(name).name for name in (names[0], names[2])}


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".", "a\\b"]
)
def test_names_that_lead_elsewhere_are_refused(
    s3: S3Server, bucket: ObjectStorage, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    calls = [
        lambda: bucket.read(name),
        lambda: bucket.exists(name),
        lambda: bucket.list(name or ".."),
        lambda: bucket.create(name, b""),
        lambda: bucket.replace(name, b""),
        lambda: bucket.swap(name, b"", expected=None),
        lambda: bucket.swap(name, b"", expected=b""),
        lambda: bucket.delete(name),
        lambda: bucket.adopt(file, name),
        lambda: bucket.open(name),
    ]

    for call in calls:
        with pytest.raises(ValueError, match="is no name of a file in a cache"):
            call()
    assert s3.requests == []


def test_names_need_no_plain_letters(bucket: ObjectStorage) -> None:
    bucket.create("refs/été 100% #1?.json", b"content")

    assert bucket.read("refs/été 100% #1?.json") == b"content"
    assert [file.name for file in bucket.list("refs")] == ["refs/été 100% #1?.json"]


def test_long_listings_come_in_pages(
    s3: S3Server, bucket: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    for number in range(25):
        bucket.create(f"commits/{number}", b"")
    s3.requests.clear()

    assert len({file.name for file in bucket.list("commits")}) == 25
    assert len(s3.requests) == 3


def test_a_pickled_storage_opens_the_same_bucket(bucket: ObjectStorage) -> None:
    bucket.create("a", b"content")

    copy = pickle.loads(pickle.dumps(bucket))

    assert (copy.url, copy.read("a")) == (bucket.url, b"content")
    assert copy.folder_aside() == bucket.folder_aside()


FORK = """
import os, sys
from pathlib import Path
from latents.cache.object_storage import open_object_storage

storage = open_object_storage(sys.argv[1], local=Path(sys.argv[2]))
storage.read("a")
child = os.fork()
if not child:
    assert storage.open(sys.argv[3]).read()
    try:
        storage.read("a")
    except OSError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_process_is_told_and_does_not_hang(
    bucket: ObjectStorage, s3_url: str, tmp_path: Path
) -> None:
    bucket.create("a", b"content")
    adopt(bucket, SHARD_NAME, SHARD)

    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, s3_url, str(tmp_path / "local"), SHARD_NAME],
        cwd=ROOT,
        check=True,
        timeout=20,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout

    assert told.startswith(f"{s3_url}: a cannot be read in a forked process; start workers with")
