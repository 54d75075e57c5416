"""Requests to an object store: every fault an `OSError` that says what to check."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import from_url

from latents.cache.storage import StoredFile
from latents.errors import CacheError

if TYPE_CHECKING:
    from obstore import GetResult, UpdateVersion
    from obstore.store import ObjectStore

_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for other servers than "
    "Amazon's, AWS_ENDPOINT_URL",
    "gcs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "memory": "nothing",
}
"""Kinds of object store that can hold a cache, and what sets up each.

Not the client's own view of a folder: it cannot swap, and does not sync what it writes.
"""
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_PIECE_BYTES = 5 * 2**20
"""Moved by one request (S3 takes no smaller parts), so that slow lines answer in time too."""
_PIECES_AT_ONCE = 4
_WHOLE_REQUEST = timedelta(minutes=10)
"""For a large file of rows on a slow line. A server that stalls is given up much sooner."""
_PAUSES_SECONDS = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Before each try of a put that was not answered."""

Outcome = Literal["won", "lost", "unknown"]
"""Of a put with a condition. ``unknown``: the answer was lost, and another has written since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a request may take before it is a fault."""

    connect_seconds: float = 5
    answer_seconds: float = 30
    """Without a byte from the server, sending included."""
    retry_seconds: float = 20
    """From the first try on, after which a request that failed is not tried again."""


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object as it was at one moment."""

    content: bytes
    writer: str | None
    """Which put wrote it; None where it was not one with a condition."""
    version: UpdateVersion
    """What a put names to replace just this object."""


class Bucket:
    """The objects below one URL, without any state on this machine.

    The client's threads do not survive a fork: in a forked process every request is refused.

    Args:
        url: ``s3://bucket/prefix``, ``gs://``, ``az://`` or ``memory://``.
        patience: When a server counts as dead.

    Raises:
        CacheError: The URL is of another kind, or the environment does not set it up.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        kind = _kind(url)
        self.url = url
        self._environment = _ENVIRONMENT[kind]
        self._store = _connect(url, patience)
        # A put with a condition that the client repeats by itself can be refused because its
        # first try was carried out, which looks as if another had written.
        self._store_trying_once = (
            self._store if kind == "memory" else _connect(url, patience, max_retries=0)
        )

    def get(self, name: str) -> FoundObject:
        """An object; raises `FileNotFoundError` where there is none."""
        with self._asking(name, "read"):
            found = obstore.get(self._store, name)
            return FoundObject(
                bytes(found.bytes()), found.attributes.get("writer"), _version(found)
            )

    def num_bytes(self, name: str) -> int:
        """An object's size; raises `FileNotFoundError` where there is none."""
        with self._asking(name, "read"):
            return obstore.head(self._store, name)["size"]

    def pieces(self, name: str) -> Iterator[bytes]:
        """An object's content, some pieces at once; each has its own time and its own retries."""
        end = self.num_bytes(name)
        coming: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_PIECES_AT_ONCE) as pool:
            for start in range(0, end, _PIECE_BYTES):
                length = min(_PIECE_BYTES, end - start)
                coming.append(pool.submit(self._piece, name, start, length))
                if len(coming) == _PIECES_AT_ONCE:
                    yield coming.popleft().result()
            for piece in coming:
                yield piece.result()

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """Objects below a prefix (``""``: all), fetched page by page while they are taken."""
        with self._asking(prefix or "it", "listed"):
            for page in obstore.list(self._store, prefix or None, chunk_size=1000):
                for found in page:
                    yield StoredFile(
                        name=found["path"],
                        num_bytes=found["size"],
                        modified_seconds=found["last_modified"].timestamp(),
                    )

    def delete(self, name: str) -> None:
        """Removes an object; a missing one is a fault for some servers and none for others."""
        with self._asking(name, "deleted"):
            obstore.delete(self._store, name)

    def put(self, name: str, content: bytes | Path) -> None:
        """Writes an object or a file's content, in parts where it is large.

        There is no object before the last part is there.
        """
        with self._asking(name, "written"):
            obstore.put(
                self._store,
                name,
                content,
                chunk_size=_PIECE_BYTES,
                max_concurrency=_PIECES_AT_ONCE,
            )

    def put_if(self, name: str, content: bytes, *, expected: FoundObject | None) -> Outcome:
        """Writes an object if there still is the expected one (None: if there is none).

        An answer can be lost after the server has carried out the put. Then the writer among
        the object's attributes tells whether it is ours. Its content could not: two writers may
        put the same bytes, and both would take the object for theirs.
        """
        writer = uuid.uuid4().hex
        expected_version = expected.version if expected else None
        is_answered = True
        with self._asking(name, "written"):
            for pause_seconds in _PAUSES_SECONDS:
                time.sleep(pause_seconds)
                try:
                    obstore.put(
                        self._store_trying_once,
                        name,
                        content,
                        attributes={"writer": writer},
                        mode=expected_version or "create",
                    )
                    return "won"
                except (AlreadyExistsError, PreconditionError) as error:
                    fault: BaseError = error
                except GenericError as error:
                    fault, is_answered = error, False
                try:
                    found = self._find(name)
                except OSError:
                    break  # what the put met says more
                if found and found.writer == writer:
                    return "won"
                # S3 also refuses a put that met another which then came to nothing: try again.
                if (found.version if found else None) != expected_version:
                    return "lost" if is_answered else "unknown"
            raise fault

    def _piece(self, name: str, start: int, length: int) -> bytes:
        with self._asking(name, "read"):
            return bytes(obstore.get_range(self._store, name, start=start, length=length))

    def _find(self, name: str) -> FoundObject | None:
        try:
            return self.get(name)
        except FileNotFoundError:
            return None

    @contextmanager
    def _asking(self, name: str, done: str) -> Iterator[None]:
        if _client_process() != os.getpid():
            raise OSError(
                f"{self.url}: {name} cannot be {done} in a forked process; start workers with "
                "the multiprocessing context 'spawn' or 'forkserver'"
            )
        try:
            yield
        except (FileNotFoundError, BaseError, NotImplementedError) as error:
            if any(code in str(error) for code in _NO_BUCKET):
                raise OSError(f"{self.url}: there is no such bucket; make it first") from error
            if isinstance(error, FileNotFoundError):
                place = f"{self.url}/{name}"
                raise FileNotFoundError(errno.ENOENT, "no such object", place) from error
            raise OSError(
                f"{self.url}: {name} cannot be {done} ({_summary(error)}). Check the bucket's "
                f"name, the network, and in the environment {self._environment}"
            ) from error


@cache
def _client_process() -> int:
    """The process whose threads carry out all requests: the one that made the first."""
    return os.getpid()


def _kind(url: str) -> str:
    try:
        kind: str = obstore.parse_scheme(url)
    except (BaseError, ValueError):
        kind = "unknown"
    if kind not in _ENVIRONMENT:
        raise CacheError(
            f"{url} is no place for a cache; name a folder (without file://), or "
            "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        )
    return kind


def _connect(url: str, patience: Patience, *, max_retries: int = 100) -> ObjectStore:
    try:
        return from_url(
            url,
            client_options={
                "allow_http": True,  # only an endpoint that the user named is without TLS
                "connect_timeout": timedelta(seconds=patience.connect_seconds),
                "read_timeout": timedelta(seconds=patience.answer_seconds),
                "timeout": _WHOLE_REQUEST,
            },
            retry_config={
                "backoff": {"max_backoff": timedelta(seconds=5)},
                "max_retries": max_retries,  # the time is the bound, where it is not 0
                "retry_timeout": timedelta(seconds=patience.retry_seconds),
            },
        )
    except (BaseError, ValueError) as error:
        raise CacheError(
            f"{url} cannot be set up ({_summary(error)}); check its spelling, and in the "
            f"environment {_ENVIRONMENT[_kind(url)]}"
        ) from error


def _version(found: GetResult) -> UpdateVersion:
    """Google counts versions, the others give tags; the client takes no None."""
    version: UpdateVersion = {}
    if found.meta["e_tag"] is not None:
        version["e_tag"] = found.meta["e_tag"]
    if found.meta["version"] is not None:
        version["version"] = found.meta["version"]
    return version


def _summary(error: Exception) -> str:
    """What the client or the server says, in one line: without its dump, XML and request ids."""
    said = " ".join(str(error).partition("Debug source")[0].split())
    text, _, body = said.partition("<?xml")
    request = text[max(0, text.rfind("Error performing")) :].rstrip(": ")
    return ": ".join([request, *re.findall("<(?:Code|Message)>(.*?)</", body)])[:500]
