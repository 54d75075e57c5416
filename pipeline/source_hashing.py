"""Digests of sources, read again only where something says that they may have changed."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.scene_clips import scene_digest
from pipeline.source_columns import is_utf8
from pipeline.source_entries import FileVersion
from pipeline.source_places import digest_of_place, version_of_place
from pipeline.source_urls import patiently
from pipeline.sources import HashedSource, KnownFile, Source, UnreadableSource


def hash_sources(
    sources: Sequence[Source],
    known: Mapping[str, KnownFile],
    *,
    num_threads: int,
    rehash: bool = False,
    on_hashed: Callable[[int, int], None] = lambda done, total: None,
) -> list[HashedSource | UnreadableSource]:
    """Digests of all sources.

    A file is read again only when its size or time changed, and one that is not local only when
    its etag did, or its size and time where its server gives no etag. With ``rehash`` every file
    is read, for disks and copying tools that do not keep times.
    """
    trusted = {} if rehash else known
    hashed: list[HashedSource | UnreadableSource] = []
    files = _SharedDigests()
    with ThreadPoolExecutor(num_threads) as pool:
        for one in pool.map(lambda source: _hash(source, trusted.get(source.uri), files), sources):
            hashed.append(one)
            on_hashed(len(hashed), len(sources))
    return hashed


def _hash(
    source: Source, known: KnownFile | None, files: _SharedDigests
) -> HashedSource | UnreadableSource:
    if source.scene is not None:
        return HashedSource(source=source, size=0, mtime_ns=0, digest=scene_digest(source.scene))
    if source.path is not None:
        return _hash_local(source, source.path, known, files)
    return _hash_fetched(source, known, files)


def _hash_local(
    source: Source, path: Path, known: KnownFile | None, files: _SharedDigests
) -> HashedSource | UnreadableSource:
    try:
        found = path.stat()
        if fault := _fault(path, found):
            return UnreadableSource(source=source, reason=fault)
        version = FileVersion(size=found.st_size, mtime_ns=found.st_mtime_ns)
        digest = _on_record(known, version) or files.digest(source, lambda: _file_digest(path))
    except OSError as error:
        return UnreadableSource(source=source, reason=f"the file cannot be read ({error.strerror})")
    except ValueError:
        return UnreadableSource(source=source, reason="no file can have that name")
    return _hashed(source, version, digest)


def _hash_fetched(
    source: Source, known: KnownFile | None, files: _SharedDigests
) -> HashedSource | UnreadableSource:
    place = source.place
    if not is_utf8(place):
        return UnreadableSource(source=source, reason="the file's name is not UTF-8; rename it")
    try:
        version = source.listed or patiently(lambda: version_of_place(place))
        digest = _on_record(known, version) if version.tells else None
        if digest is None:
            digest = files.digest(source, lambda: patiently(lambda: digest_of_place(place)))
    except (OSError, ValueError) as error:
        reason = f"the file cannot be fetched ({error})"
        return UnreadableSource(source=source, reason=reason, error_class="FetchError")
    return _hashed(source, version, digest)


def _on_record(known: KnownFile | None, version: FileVersion) -> str | None:
    """The digest on record, where the record is of this version."""
    if known is None:
        return None
    recorded = FileVersion(size=known.size, mtime_ns=known.mtime_ns, etag=known.etag)
    return known.digest if recorded == version else None


def _hashed(source: Source, version: FileVersion, digest: str) -> HashedSource:
    return HashedSource(
        source=source,
        size=version.size,
        mtime_ns=version.mtime_ns,
        etag=version.etag,
        digest=digest,
    )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _SharedDigests:
    """Digests of files of which several stretches are sources: each file is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[str, Future[str]] = {}

    def digest(self, source: Source, read: Callable[[], str]) -> str:
        """Digest of a source, of which ``read`` gives that of the whole file."""
        if source.span is None:
            return read()
        name = str(source.path or source.place)
        with self._lock:
            digest = self._digests.get(name)
            is_first = digest is None
            if digest is None:
                digest = self._digests[name] = Future()
        if is_first:
            try:
                digest.set_result(read())
            except BaseException as error:  # whoever waits for it gets it too
                digest.set_exception(error)
        return source.span.digest(digest.result())


def _fault(path: Path, found: os.stat_result) -> str | None:
    """Why a file is not opened: a device or pipe has no end, and rows cannot hold the others."""
    if not stat.S_ISREG(found.st_mode):
        return "the file cannot be read (it is no file but a folder, device or pipe)"
    if not is_utf8(str(path)):
        return "the file's name is not UTF-8; rename it"
    if not -(2**63) <= found.st_mtime_ns < 2**63:
        return "the file was last changed after the year 2262, it says; touch it"
    return None
