"""Copies of a bucket's objects on this machine; those not used for the longest go first."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from latents.recipe import sha256_hex

_ABANDONED_SECONDS = 7 * 86_400
"""A file aside that nobody wrote to for so long belongs to a run that was killed."""


class LocalCopies:
    """A folder of copies that several processes share.

    Args:
        folder: Made when it is needed.
        max_bytes: Beyond this the least recently opened copies are removed. One that is open
            stays readable; its room is free when it is closed.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def folder_aside(self) -> Path:
        """A folder for files that `keep` will take."""
        folder = self._folder / "aside"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def open(self, name: str) -> FileIO | None:
        """A copy opened for reading, unbuffered; None where there is none."""
        try:
            file = self._path(name).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with suppress(PermissionError):  # another user's copy
            os.utime(file.fileno())  # access times are not kept on every disk
        return file

    def keep(self, file: Path, name: str) -> FileIO:
        """Takes a whole file of `folder_aside` as the copy, and gives it opened like `open`."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.utime(file)
        # Opened under its old name: under the new one another process may remove it at once.
        opened = file.open("rb", buffering=0)
        file.replace(path)
        self._make_room(path)
        return opened

    def remove(self, name: str) -> None:
        """Removes a copy; one that is not there is no fault."""
        self._path(name).unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Held by the one that fetches an object, so that workers which start at once wait for it.

        Raises:
            OSError: The folder's file system has no locks.
        """
        folder = self._folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        # Few lock files that are never removed: a removed one could be held by two.
        path = folder / sha256_hex(name.encode())[:2]
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Not by closing alone: a child forked meanwhile has the file open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        return self._folder / "copies" / name

    def _make_room(self, spared: Path) -> None:
        for path, stat in _files(self.folder_aside()):
            if stat.st_mtime < time.time() - _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        copies = sorted(_files(self._folder / "copies"), key=lambda copy: copy[1].st_mtime_ns)
        excess_bytes = sum(stat.st_size for _, stat in copies) - self._max_bytes
        for path, stat in copies:
            if excess_bytes > 0 and path != spared:
                path.unlink(missing_ok=True)
                excess_bytes -= stat.st_size


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process removed it
                continue
