"""Files on servers and in archives, named by URLs as fsspec reads them.

S3, Google Cloud Storage and Azure are asked by obstore, the client that caches in buckets use; the
credentials are those of the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``).
"""

from __future__ import annotations

import csv
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.core import url_to_fs

from latents.errors import SourceError
from pipeline.source_entries import FileVersion

T = TypeVar("T")

PAUSES_SECONDS = (0.5, 2.0)
"""Before each further try of what was not answered."""

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 60
"""Without a byte from a server."""
_RETRY_SECONDS = 20
_OF_THE_CONTENT = (SourceError, UnicodeError, csv.Error, tarfile.TarError)
"""Raised by who reads an opened file, of what it holds."""
_URL = re.compile(r"[a-z][a-z0-9+.\-]*(?:::.*)?://", re.DOTALL)
_PROTOCOL = re.compile(r"(?:^|::)([a-z][a-z0-9+.\-]*)(?=://|::|$)")
_ETAG_NAMES = ("ETag", "etag", "e_tag")
_TIME_NAMES = ("mtime", "modified", "last_modified", "LastModified", "Last-Modified", "updated")


def is_url(text: str) -> bool:
    """Whether a name is a URL, such as ``s3://bucket/a.mp4`` or ``zip://a.mp4::/videos.zip``."""
    return _URL.match(text) is not None


def path_of_url(url: str) -> str:
    """The part of a URL that a suffix is read from."""
    first = url.partition("::")[0]
    return first.partition("?")[0].partition("#")[0] if first.startswith("http") else first


def beside_url(url: str, name: str) -> str:
    """The URL of a file by a name that is relative to a list at a URL."""
    first, chain, rest = url.partition("::")
    return f"{first.rpartition('/')[0]}/{name}{chain}{rest}"


def require_protocol(url: str) -> None:
    """Raises `SourceError` where nothing here can read such URLs; asks no server."""
    for protocol in _PROTOCOL.findall(url):
        _require_protocol(protocol)


def version_of_url(url: str) -> FileVersion:
    """What tells whether the file at a URL changed.

    Raises:
        FileNotFoundError: There is none.
        OSError: The server refuses, or does not answer.
    """
    with _asking(url):
        file_system, path = _file_system(url)
        file_system.invalidate_cache()
        found = file_system.info(path)
        if found.get("type") == "directory":
            raise IsADirectoryError(f"{url} is a folder")
        version = _version(found)
        return version if version.tells else _with_time(version, file_system, path)


@contextmanager
def open_url(url: str, *, seeks: bool) -> Iterator[BinaryIO]:
    """The file at a URL, opened; what happens within is told as `version_of_url` does.

    Args:
        url: The file.
        seeks: It is read here and there. Otherwise it is read in one go, which servers can do
            that do not serve ranges.
    """
    with _asking(url):
        file_system, path = _file_system(url)
        streams = not seeks and "https" in file_system.protocol
        options = {"block_size": 0} if streams else {}
        with file_system.open(path, "rb", **options) as file:
            yield cast(BinaryIO, file)


def files_below(url: str) -> dict[str, FileVersion]:
    """URLs of the files below a URL, in order; empty where that is a file itself."""
    with _asking(url):
        file_system, path = _file_system(url)
        file_system.invalidate_cache()
        if _is_web(url) and not url.endswith("/"):
            return {}
        if not file_system.isdir(path):
            return {}
        return _named_by_url(url, file_system, file_system.find(path, detail=True))


def matching_files(pattern: str) -> dict[str, FileVersion]:
    """URLs of the files that match a pattern with ``*``, ``?``, ``[`` or ``**``, in order."""
    with _asking(pattern):
        file_system, path = _file_system(pattern)
        file_system.invalidate_cache()
        return _named_by_url(pattern, file_system, file_system.glob(path, detail=True))


def is_url_pattern(url: str) -> bool:
    """Whether a URL is a pattern; a question mark begins the query of a web address."""
    signs = "*[" if _is_web(url) else "*?["
    return any(sign in url.partition("::")[0] for sign in signs)


def patiently(ask: Callable[[], T]) -> T:
    """The answer to what is asked; where none comes, it is asked again, a few times.

    Raises:
        FileNotFoundError: At once: there is no such file.
        PermissionError: At once: the server refuses.
        OSError: Nothing came of the last try either.
    """
    for pause_seconds in PAUSES_SECONDS:
        try:
            return ask()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(pause_seconds)
    return ask()


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _file_system(url: str) -> tuple[Any, str]:
    require_protocol(url)
    options = {name: _options(name) for name in _PROTOCOL.findall(url) if _options(name)}
    return cast(tuple[Any, str], url_to_fs(url, **options))


@cache
def _require_protocol(protocol: str) -> None:
    from fsspec.registry import get_filesystem_class

    if protocol in _OBJECT_STORES:
        from obstore.fsspec import register

        register(protocol)
    try:
        get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise SourceError(
            f"{protocol}:// cannot be read here ({error}); wanted a URL that fsspec knows, such "
            "as s3://, gs://, az://, https:// or zip://FILE::ARCHIVE"
        ) from error


def _options(protocol: str) -> dict[str, Any]:
    """How long a server may take."""
    if protocol in _OBJECT_STORES:
        return {
            "client_options": {
                "allow_http": True,  # only an endpoint that the user named is without TLS
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=_SILENCE_SECONDS),
                "timeout": timedelta(minutes=10),
            },
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        }
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        limits = ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )
        return {"client_kwargs": {"timeout": limits}}
    return {}


def _named_by_url(
    url: str, file_system: Any, found: Mapping[str, Mapping[str, Any]]
) -> dict[str, FileVersion]:
    _, chain, rest = url.partition("::")
    return {
        f"{file_system.unstrip_protocol(name)}{chain}{rest}": _version(of_file)
        for name, of_file in sorted(found.items())
        if of_file.get("type") != "directory"
    }


def _version(found: Mapping[str, Any]) -> FileVersion:
    size = found.get("size") or 0
    etag = next((str(found[name]) for name in _ETAG_NAMES if found.get(name)), "")
    if not etag and "CRC" in found:
        etag = f"crc32:{found['CRC']:08x}"
    if etag:
        return FileVersion(size=size, etag=etag)
    time_found = next((found[name] for name in _TIME_NAMES if found.get(name)), None)
    return FileVersion(size=size, mtime_ns=_nanoseconds(time_found))


def _with_time(version: FileVersion, file_system: Any, path: str) -> FileVersion:
    """Some file systems tell the time only when they are asked for it alone."""
    try:
        modified = file_system.modified(path)
    except NotImplementedError:
        return version
    return FileVersion(size=version.size, mtime_ns=_nanoseconds(modified))


def _nanoseconds(moment: object) -> int:
    """Since 1970; 0 where it is none that rows can hold."""
    try:
        if isinstance(moment, str):
            moment = parsedate_to_datetime(moment)
        if isinstance(moment, datetime):
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            moment = aware.timestamp()
    except (ValueError, OverflowError):
        return 0
    if not isinstance(moment, int | float) or not 0 < moment < 2**33:
        return 0
    return round(moment * 10**9)


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turns whatever a file system raises into an `OSError` that says what happened."""
    try:
        yield
    except _OF_THE_CONTENT:
        raise
    except Exception as error:
        # Each of fsspec's file systems has errors of its own, and none may stop a job.
        raise _fault(url, error) from error


def _fault(url: str, error: Exception) -> OSError:
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    said = " ".join(str(cause or error).partition("Debug source")[0].split())[:300]
    status = getattr(cause, "status", None)
    if isinstance(error, FileNotFoundError) and (cause is None or status in (404, 410)):
        return FileNotFoundError(f"{url} is not there")
    if isinstance(error, IsADirectoryError):
        return IsADirectoryError(f"{url} is a folder")
    if status in (400, 401, 403, 405, 451) or _is_refusal(error):
        return PermissionError(f"{url} is refused ({said})")
    return OSError(f"{url} gives no answer ({type(cause or error).__name__}: {said})")


def _is_refusal(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(
        {"PermissionError", "PermissionDeniedError", "UnauthenticatedError"}
    )
