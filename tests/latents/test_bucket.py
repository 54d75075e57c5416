"""What only a network can do wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latents.cache.bucket import Patience
from latents.cache.object_storage import ObjectStorage, open_object_storage
from latents.errors import CacheError
from latents.recipe import sha256_hex
from tests.latents.s3_server import S3Server, no_fault
from tests.latents.storage_contract import SHARD, SHARD_NAME, adopt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path) -> ObjectStorage:
    return open_object_storage(s3_url, local=tmp_path / "local")


@pytest.mark.parametrize("fault", ["lose answer", "lose request", "fail after", "conflict"])
def test_a_create_without_an_answer_is_ours_if_we_wrote_it(
    s3: S3Server, bucket: ObjectStorage, fault: str
) -> None:
    s3.once("PUT", fault)

    assert bucket.create("commits/0.json", b"ours")

    assert bucket.read("commits/0.json") == b"ours"
    assert not bucket.create("commits/0.json", b"ours")


@pytest.mark.parametrize("fault", ["lose answer", "lose request"])
def test_equal_content_of_another_writer_is_not_ours(
    s3: S3Server, bucket: ObjectStorage, fault: str
) -> None:
    bucket.create("commits/0.json", b"equal")
    s3.once("PUT", fault)

    assert not bucket.create("commits/0.json", b"equal")


@pytest.mark.parametrize("fault", ["lose answer", "lose request", "fail after", "conflict"])
@pytest.mark.parametrize("expected", [None, b"before"])
def test_a_swap_without_an_answer_is_ours_if_we_wrote_it(
    s3: S3Server, bucket: ObjectStorage, fault: str, expected: bytes | None
) -> None:
    if expected is not None:
        bucket.replace("ref", expected)
    s3.once("PUT", fault)

    assert bucket.swap("ref", b"ours", expected=expected)

    assert bucket.read("ref") == b"ours"


@pytest.mark.parametrize("fault", ["lose answer", "fail after"])
def test_a_swap_that_may_have_been_overwritten_is_neither_won_nor_lost(
    s3: S3Server, bucket: ObjectStorage, s3_url: str, tmp_path: Path, fault: str
) -> None:
    bucket.replace("ref", b"before")
    another = open_object_storage(s3_url, local=tmp_path / "elsewhere")

    def another_writes_before_we_look(request: str) -> str | None:
        s3.fault = no_fault
        another.replace("ref", b"theirs")
        return None

    def lose_the_answer(request: str) -> str | None:
        if not request.startswith("PUT"):
            return None
        s3.fault = another_writes_before_we_look
        return fault

    s3.fault = lose_the_answer

    with pytest.raises(OSError, match=r"writing ref was lost, and another writer has changed it"):
        bucket.swap("ref", b"ours", expected=b"before")


def test_reads_and_replacements_without_an_answer_are_repeated(
    s3: S3Server, bucket: ObjectStorage
) -> None:
    s3.once("PUT", "lose answer")
    bucket.replace("a", b"content")
    s3.once("GET", "lose request")

    assert bucket.read("a") == b"content"


ADOPT = """
import sys
from pathlib import Path
from latents.cache.object_storage import open_object_storage

storage = open_object_storage(sys.argv[1], local=Path(sys.argv[2]))
file = storage.folder_aside() / "finished"
file.write_bytes(bytes(40 * 2**20))
storage.adopt(file, sys.argv[3])
"""


def test_an_upload_that_was_killed_leaves_no_object_and_can_be_repeated(
    s3: S3Server, bucket: ObjectStorage, s3_url: str, tmp_path: Path
) -> None:
    name = f"shards/{sha256_hex(bytes(40 * 2**20))}.tar"
    has_stalled = threading.Event()

    def stall_at_the_fifth_part(request: str) -> str | None:
        if "partNumber=5&" not in request:
            return None
        has_stalled.set()
        return "hang"

    s3.fault = stall_at_the_fifth_part
    command = [sys.executable, "-c", ADOPT, s3_url, str(tmp_path / "local"), name]
    with subprocess.Popen(command, cwd=ROOT) as child:
        assert has_stalled.wait(timeout=20)
        child.send_signal(signal.SIGKILL)
    s3.forget()

    assert list(bucket.list("")) == []
    bucket.adopt(bucket.folder_aside() / "finished", name)
    assert [(file.name, file.num_bytes) for file in bucket.list("")] == [(name, 40 * 2**20)]


def test_an_upload_that_is_refused_leaves_the_file_and_nothing_in_the_bucket(
    s3: S3Server, bucket: ObjectStorage
) -> None:
    s3.fault = lambda request: "deny" if "partNumber=2&" in request else None

    with pytest.raises(OSError, match=r"shard\.tar cannot be written .*403 Forbidden"):
        adopt(bucket, "shard.tar", bytes(6 * 2**20))

    assert (bucket.folder_aside() / "finished").stat().st_size == 6 * 2**20
    assert list(bucket.list("")) == []
    assert "DELETE" in s3.requests[-2]  # what was uploaded would cost money and never be seen


def test_an_upload_of_another_size_is_a_fault(
    s3: S3Server, bucket: ObjectStorage, s3_url: str, tmp_path: Path
) -> None:
    another = open_object_storage(s3_url, local=tmp_path / "elsewhere")

    def another_writes_before_we_look(request: str) -> str | None:
        if request.startswith("HEAD"):
            another.replace(SHARD_NAME, b"short")
        return None

    s3.fault = another_writes_before_we_look

    with pytest.raises(OSError, match=f"{SHARD_NAME} has 5 bytes after uploading {len(SHARD)}"):
        adopt(bucket, SHARD_NAME, SHARD)
    assert (bucket.folder_aside() / "finished").exists()


def faults_of(storage: ObjectStorage) -> list[str]:
    """What each operation says of a server that does not serve."""
    file = storage.folder_aside() / "finished"
    file.write_bytes(SHARD)
    calls = [
        lambda: storage.read("a"),
        lambda: storage.exists("a"),
        lambda: list(storage.list("rows")),
        lambda: storage.create("a", b""),
        lambda: storage.replace("a", b""),
        lambda: storage.swap("a", b"", expected=None),
        lambda: storage.swap("a", b"", expected=b""),
        lambda: storage.delete("a"),
        lambda: storage.adopt(file, SHARD_NAME),
        lambda: storage.open(SHARD_NAME),
    ]
    faults = []
    for call in calls:
        with pytest.raises(OSError, match="cannot be") as fault:
            call()
        assert not isinstance(fault.value, FileNotFoundError)
        faults.append(str(fault.value))
    return faults


def test_a_dead_endpoint_is_told_in_time(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    storage = open_object_storage(s3_url, local=tmp_path, patience=Patience(retry_seconds=0.1))
    start_seconds = time.monotonic()

    faults = faults_of(storage)

    assert " ".join(faults).count("a cannot be written") == 3
    for fault in faults:
        assert fault.startswith(f"{s3_url}: ")
        assert endpoint in fault
        assert "AWS_ACCESS_KEY_ID" in fault
        assert "AWS_ENDPOINT_URL" in fault
    assert time.monotonic() - start_seconds < 10


def test_a_server_that_does_not_answer_is_given_up(
    s3: S3Server, s3_url: str, tmp_path: Path
) -> None:
    s3.fault = lambda _: "hang"
    patience = Patience(answer_seconds=0.3, retry_seconds=0.1)
    storage = open_object_storage(s3_url, local=tmp_path, patience=patience)
    start_seconds = time.monotonic()

    with pytest.raises(OSError, match="a cannot be read"):
        storage.read("a")
    assert time.monotonic() - start_seconds < 3


def test_missing_permission_is_told(s3: S3Server, bucket: ObjectStorage) -> None:
    s3.fault = lambda _: "deny"

    for fault in faults_of(bucket):
        assert "403 Forbidden" in fault
        assert "AWS_SECRET_ACCESS_KEY" in fault


def test_a_missing_bucket_is_told(s3: S3Server, tmp_path: Path) -> None:
    storage = open_object_storage("s3://nowhere/cache", local=tmp_path)

    for call in (
        lambda: storage.read("a"),
        lambda: storage.create("a", b""),
        lambda: storage.replace("a", b""),
        lambda: list(storage.list("")),
    ):
        with pytest.raises(OSError, match="s3://nowhere/cache: there is no such bucket"):
            call()


@pytest.mark.parametrize(
    "url", ["ftp://host/cache", "file:///cache", "https://host/cache", "s3:/b", "s3://", "://"]
)
def test_other_kinds_of_url_are_refused(url: str) -> None:
    with pytest.raises(CacheError, match=r"name a folder .*s3://bucket/prefix|check its spelling"):
        open_object_storage(url)


def test_a_missing_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(CacheError, match=r"az://container/cache .*AZURE_STORAGE_ACCOUNT_NAME"):
        open_object_storage("az://container/cache")
