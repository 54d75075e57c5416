"""The files of sources on this machine: those that lie elsewhere are copied for their decoding."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from latents.durable import reason
from latents.errors import ClipError, DecodeError, FetchError, SourceError
from pipeline.decode import SourceTask
from pipeline.source_places import pieces_of_place, suffix_of_place
from pipeline.source_urls import is_url, patiently

_PREFIX = "mmldm-fetched-"
_LOCK_NAME = "in-use"


class FetchedFiles:
    """Finds the file of a source on this machine. Used by one thread; to be closed.

    The file that was fetched last stays until another is, since the next source may be another
    stretch of it. Copies lie below the folder for temporary files (``TMPDIR``); those that a
    killed process left there are removed by the next that makes some.

    Args:
        should_stop: Once true, fetching is left.
    """

    def __init__(self, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._place = ""
        self._copy: Path | None = None
        self._digest = ""

    def localise(self, task: SourceTask) -> SourceTask | None:
        """The task, with a local file whose bytes are those that were hashed; None if stopped.

        Raises:
            DecodeError: A local file cannot be read, or has other bytes by now.
            FetchError: The same of one that lies elsewhere.
            SourceError: The folder for temporary files is full or cannot be written.
        """
        if task.path is None:
            return task
        if not is_url(task.path):
            _require_same_file(task)
            return task
        if self._place != task.path or not _is_of(task, self._digest):
            self._fetch(task, task.path)
        return None if self._copy is None else replace(task, path=str(self._copy))

    def close(self) -> None:
        """Removes the copy."""
        self._forget()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _forget(self) -> None:
        self._place = self._digest = ""
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)
            self._copy = None

    def _fetch(self, task: SourceTask, place: str) -> None:
        self._forget()
        copy = self._open_folder() / f"source{suffix_of_place(place)}"
        try:
            digest = patiently(lambda: self._copy_to(copy, place))
        except OSError as error:
            copy.unlink(missing_ok=True)
            raise FetchError(task.uri, f"the file cannot be fetched ({error})") from error
        if self._should_stop():
            copy.unlink(missing_ok=True)
            return
        if not _is_of(task, digest):
            copy.unlink(missing_ok=True)
            raise _changed(FetchError, task)
        self._place, self._copy, self._digest = place, copy, digest

    def _open_folder(self) -> Path:
        if self._folder is None:
            with _writing_copies():
                _remove_orphans(Path(tempfile.gettempdir()))
                made = Path(tempfile.mkdtemp(prefix="."))
                self._lock = (made / _LOCK_NAME).open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                # Only now by the name that others look for: it is locked.
                self._folder = made.rename(made.with_name(f"{_PREFIX}{made.name[1:]}"))
        return self._folder

    def _copy_to(self, copy: Path, place: str) -> str:
        """Digest of the bytes that were copied."""
        digest = hashlib.sha256()
        with (
            _writing_copies(),
            copy.open("wb") as file,
            closing(pieces_of_place(place)) as pieces,
        ):
            while not self._should_stop() and (piece := _next_of(pieces)):
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


class _NotFetchedError(Exception):
    """Carries a fault of reading through `_writing_copies`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _next_of(pieces: Generator[bytes, None, None]) -> bytes:
    try:
        return next(pieces, b"")
    except OSError as error:
        raise _NotFetchedError(error) from error


@contextmanager
def _writing_copies() -> Iterator[None]:
    """A full disk would make every source fail, so it stops the job."""
    try:
        yield
    except _NotFetchedError as fault:
        raise fault.error from fault
    except OSError as error:
        raise SourceError(
            f"{tempfile.gettempdir()}: a source cannot be copied there ({reason(error)}). Make "
            "room for one file for each worker, or name another folder in TMPDIR"
        ) from error


def _remove_orphans(folder: Path) -> None:
    """Removes what processes left here that were killed: nobody holds their lock."""
    for left in folder.glob(f"{_PREFIX}*"):
        try:
            with (left / _LOCK_NAME).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # in use, another user's, or gone meanwhile


def _require_same_file(task: SourceTask) -> None:
    """Raises `DecodeError` where a file has not the bytes that were hashed."""
    assert task.path is not None
    try:
        stat = os.stat(task.path)
        if (stat.st_size, stat.st_mtime_ns) == (task.size, task.mtime_ns):
            return
        with open(task.path, "rb") as file:
            # Copied or touched, it still has them.
            if _is_of(task, hashlib.file_digest(file, "sha256").hexdigest()):
                return
    except OSError as error:
        raise DecodeError(task.uri, f"the file cannot be read ({reason(error)})") from error
    raise _changed(DecodeError, task)


def _is_of(task: SourceTask, file_digest: str) -> bool:
    """Whether a source is of a file with this digest: its own would name other bytes."""
    expected = task.span.digest(file_digest) if task.span else file_digest
    return expected == task.digest


def _changed(kind: type[ClipError], task: SourceTask) -> ClipError:
    return kind(task.uri, "the file changed since it was hashed; ingest it again once it is whole")
