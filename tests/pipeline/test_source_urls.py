"""Files at URLs: found, hashed once for each version, and errors of their servers."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from obstore.store import from_url

from latents.errors import SourceError
from latents.recipe import sha256_hex
from pipeline import source_urls
from pipeline.source_entries import Annotation
from pipeline.source_hashing import hash_sources
from pipeline.source_urls import is_url, patiently
from pipeline.sources import (
    HashedSource,
    KnownFile,
    Source,
    UnreadableSource,
    find_sources,
    source_of_uri,
)
from tests.latents.s3_server import S3Server


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_urls, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    files = MemoryFileSystem()
    files.store.clear()
    files.pipe({"/v/a.mp4": b"one", "/v/deep/b.MKV": b"two", "/v/notes.md": b"three"})
    yield files
    files.store.clear()


class WebServer:
    """Serves a folder; ``etags`` has the tag of each path, ``broken`` paths that fail once."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.etags: dict[str, str] = {}
        self.broken: set[str] = set()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def send_head(self) -> Any:
                server.requests.append(f"{self.command} {self.path}")
                if self.command == "GET" and self.path in server.broken:
                    server.broken.remove(self.path)
                    self.send_error(503)
                    return None
                return super().send_head()

            def end_headers(self) -> None:
                if tag := server.etags.get(self.path):
                    self.send_header("ETag", tag)
                super().end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def num_fetched(self, path: str) -> int:
        return self.requests.count(f"GET {path}")

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "one.mp4").write_bytes(b"one" * 1000)
    server = WebServer(folder)
    yield server
    server.close()


def hash_one(source: Source, known: HashedSource | None = None) -> HashedSource:
    """The source as it is found, where the log has it as it was known."""
    record = {}
    if known is not None:
        record[source.uri] = KnownFile(
            size=known.size, mtime_ns=known.mtime_ns, etag=known.etag, digest="on record"
        )
    (found,) = hash_sources([source], record, num_threads=1)
    assert isinstance(found, HashedSource), found
    return found


@pytest.mark.parametrize(
    "name", ["s3://bucket/a.mp4", "memory://a", "zip://a.mp4::/x.zip", "simplecache::s3://b/a"]
)
def test_a_url_is_told_from_a_path(name: str) -> None:
    assert is_url(name)


@pytest.mark.parametrize("name", ["/videos/a.mp4", "a::b.mp4", "scenes:1:2", "C:/a.mp4", "a"])
def test_a_path_is_no_url(name: str) -> None:
    assert not is_url(name)


def test_a_folder_at_a_url_is_searched_through(memory: MemoryFileSystem) -> None:
    found = find_sources(["memory://v"])
    assert [source.uri for source in found] == ["memory:///v/a.mp4", "memory:///v/deep/b.MKV"]
    assert hash_one(found[0]).digest == sha256_hex(b"one")


def test_a_pattern_at_a_url_is_looked_up(memory: MemoryFileSystem) -> None:
    assert [s.uri for s in find_sources(["memory://v/*.mp4"])] == ["memory:///v/a.mp4"]
    with pytest.raises(SourceError, match="matches no video"):
        find_sources(["memory://v/*.avi"])


def test_a_list_at_a_url_names_files_beside_it(memory: MemoryFileSystem) -> None:
    memory.pipe("/v/list.csv", b"file,label\ndeep/b.MKV,dog\n")
    (one,) = find_sources(["memory://v/list.csv"])
    assert one.uri == "memory://v/deep/b.MKV"
    assert one.annotation == Annotation(label="dog")
    assert hash_one(one).digest == sha256_hex(b"two")


def test_a_member_of_a_zip_is_known_by_its_checksum(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("in/a.mp4", b"one")
    url = f"zip://in/a.mp4::{tmp_path / 'v.zip'}"
    found = hash_one(find_sources([url])[0])
    assert found.digest == sha256_hex(b"one")
    assert found.etag == "crc32:7a6c86f1"
    assert [s.uri for s in find_sources([f"zip://*/*.mp4::{tmp_path / 'v.zip'}"])] == [url]


def test_an_unchanged_etag_is_not_fetched_again_and_a_changed_one_is(web: WebServer) -> None:
    web.etags["/one.mp4"] = '"first"'
    (source,) = find_sources([f"{web.url}/one.mp4"])
    first = hash_one(source)
    assert (first.etag, first.mtime_ns, first.size) == ('"first"', 0, 3000)
    assert first.digest == sha256_hex(b"one" * 1000)
    assert web.num_fetched("/one.mp4") == 1

    assert hash_one(source, first).digest == "on record"
    assert web.num_fetched("/one.mp4") == 1

    web.etags["/one.mp4"] = '"second"'
    changed = hash_one(source, first)
    assert (changed.digest, changed.etag) == (first.digest, '"second"')
    assert web.num_fetched("/one.mp4") == 2


def test_without_an_etag_size_and_time_tell(web: WebServer, tmp_path: Path) -> None:
    file = tmp_path / "web/one.mp4"
    os.utime(file, (10, 1_700_000_000))
    (source,) = find_sources([f"{web.url}/one.mp4"])
    first = hash_one(source)
    assert (first.etag, first.mtime_ns) == ("", 1_700_000_000 * 10**9)
    assert hash_one(source, first).digest == "on record"
    os.utime(file, (10, 1_700_000_001))
    assert hash_one(source, first).digest == first.digest


def test_what_fails_once_is_asked_for_again(web: WebServer) -> None:
    (source,) = find_sources([f"{web.url}/one.mp4"])
    web.broken = {"/one.mp4"}
    assert hash_one(source).digest == sha256_hex(b"one" * 1000)


def test_what_is_not_there_is_told_at_once_and_the_rest_goes_on(web: WebServer) -> None:
    sources = [source_of_uri(f"{web.url}/{name}.mp4") for name in ("gone", "one")]
    gone, one = hash_sources(sources, {}, num_threads=1)
    assert isinstance(gone, UnreadableSource)
    assert gone.reason == f"the file cannot be fetched ({web.url}/gone.mp4 is not there)"
    assert gone.error_class == "FetchError"
    assert isinstance(one, HashedSource)


def test_a_server_that_is_not_there_is_no_missing_file() -> None:
    (found,) = hash_sources([source_of_uri("http://127.0.0.1:9/a.mp4")], {}, num_threads=1)
    assert isinstance(found, UnreadableSource)
    assert "gives no answer" in found.reason


def test_what_never_comes_is_asked_for_three_times() -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise OSError("no answer")

    with pytest.raises(OSError, match="no answer"):
        patiently(ask)
    assert len(asked) == 3


def test_what_is_refused_is_asked_for_once() -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise PermissionError("refused")

    with pytest.raises(PermissionError):
        patiently(ask)
    assert len(asked) == 1


def test_an_object_store_is_listed_and_read_without_another_client(s3: S3Server) -> None:
    prefix = f"s3://{s3.bucket}/urls"
    store = from_url(prefix, client_options={"allow_http": True})
    obstore.put(store, "videos/a.mp4", b"one")
    obstore.put(store, "videos/list.txt", b"a.mp4\n")
    (found,) = find_sources([f"{prefix}/videos"])
    assert found.uri == f"{prefix}/videos/a.mp4"
    first = hash_one(found)
    assert first.digest == sha256_hex(b"one")
    assert first.etag

    s3.forget()
    (again,) = find_sources([f"{prefix}/videos/"])
    assert hash_one(again, first).digest == "on record"
    assert not [request for request in s3.requests if "a.mp4" in request]

    (listed,) = find_sources([f"{prefix}/videos/list.txt"])
    assert hash_one(listed, first).digest == "on record"

    obstore.put(store, "videos/a.mp4", b"two")
    assert hash_one(listed, first).digest == sha256_hex(b"two")


def test_a_protocol_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SourceError, match="foo:// cannot be read here"):
        find_sources(["foo://bucket/a.mp4"])
