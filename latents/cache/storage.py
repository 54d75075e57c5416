"""Where a cache's files lie: what the cache needs of a folder on disk or of an object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One file of a cache."""

    name: str
    """Relative to the cache, with ``/``: ``rows/<sha256>.parquet``."""
    num_bytes: int
    modified_seconds: float
    """Seconds since 1970."""


class Storage(Protocol):
    """The files of one cache, by name relative to its root.

    Everything written is whole or absent, and durable when the call returns. A file that is not
    there raises `FileNotFoundError`, any other fault of the disk or the network `OSError`.
    """

    @property
    def url(self) -> str:
        """The cache's root as the user named it."""

    def read(self, name: str) -> bytes:
        """A file's content."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def list(self, folder: str) -> Iterator[StoredFile]:
        """Files below a folder of the cache, in any order, those half written too; ``""``: all."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new file; False where it exists. Of several writers exactly one gets True."""

    def replace(self, name: str, content: bytes) -> None:
        """Gives a file this content, whatever it had."""

    def swap(self, name: str, content: bytes, *, expected: bytes | None) -> bool:
        """Gives a file this content if it has the expected one (None: if it is not there).

        Of several writers who expect the same exactly one gets True.
        """

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no fault."""

    def folder_aside(self) -> Path:
        """A folder on this machine for files that `adopt` will take."""

    def adopt(self, file: Path, name: str) -> None:
        """Moves a finished file, written and synced in `folder_aside`, to its name."""

    def open(self, name: str) -> FileIO:
        """A file opened for reading at any position, unbuffered.

        Of an object store the whole object is fetched and kept on this machine; one that is named
        by its SHA-256 is compared with it first.
        """

    def free_bytes(self) -> int | None:
        """Room left for new files; None where there is no telling."""
