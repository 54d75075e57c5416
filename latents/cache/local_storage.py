"""A cache in a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from latents.cache.storage import StoredFile
from latents.durable import create_file, make_folder, replace_file, sync_folder

_LOCK = ".lock"
"""Held while a file is compared and replaced; empty, and never removed."""


class LocalStorage:
    """See `latents.cache.storage.Storage`. Works on any file system with hard links and locks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder, as given."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """A file's content."""
        return self._path(name).read_bytes()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._path(name).exists()

    def list(self, folder: str) -> Iterator[StoredFile]:
        """Files below a folder, in any order."""
        for parent, _, names in os.walk(self._path(folder), onerror=_raise_unless_missing):
            for name in names:
                path = Path(parent, name)
                try:
                    stat = path.stat()
                except FileNotFoundError:  # another process's half-written file was renamed
                    continue
                if name != _LOCK:
                    yield StoredFile(
                        name=path.relative_to(self.root).as_posix(),
                        num_bytes=stat.st_size,
                        modified_seconds=stat.st_mtime,
                    )

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new file; False where it exists."""
        return create_file(self._path_for_writing(name), content)

    def replace(self, name: str, content: bytes) -> None:
        """Gives a file this content, whatever it had."""
        replace_file(self._path_for_writing(name), content)

    def swap(self, name: str, content: bytes, *, expected: bytes | None) -> bool:
        """Gives a file this content if it has the expected one."""
        path = self._path_for_writing(name)
        with _locked(path.parent / _LOCK):
            try:
                found: bytes | None = path.read_bytes()
            except FileNotFoundError:
                found = None
            if found != expected:
                return False
            replace_file(path, content)
        return True

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no fault."""
        path = self._path(name)
        path.unlink(missing_ok=True)

    def folder_aside(self) -> Path:
        """Beside the shards, so that a finished one is only renamed."""
        folder = self._path("shards")
        make_folder(folder)
        return folder

    def adopt(self, file: Path, name: str) -> None:
        """Renames a finished file into place."""
        path = self._path_for_writing(name)
        file.replace(path)
        sync_folder(path.parent)

    def open(self, name: str) -> FileIO:
        """A file opened for reading, unbuffered."""
        return self._path(name).open("rb", buffering=0)

    def free_bytes(self) -> int | None:
        """Room left on the disk."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _path(self, name: str) -> Path:
        return self.root / name

    def _path_for_writing(self, name: str) -> Path:
        path = self._path(name)
        make_folder(path.parent)
        return path


def _raise_unless_missing(error: OSError) -> None:
    """A folder that cannot be listed must not be taken for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Not left to closing: a process forked meanwhile still has the file open.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
