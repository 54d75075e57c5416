"""Files that are whole or absent: written aside, fsynced, then renamed or linked into place."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from latents.errors import CacheError

PARTIAL = ".partial-"
"""How the name of a file begins that is not whole yet."""


def partial_path(folder: Path) -> Path:
    """A name in ``folder`` that no other writer has."""
    return folder / f"{PARTIAL}{uuid.uuid4().hex}"


@contextmanager
def written_aside(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file in ``folder``, removed on leaving unless it was renamed."""
    path = partial_path(folder)
    try:
        # Not tempfile: its files are the owner's alone, and others may read a cache.
        with path.open("xb") as file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def writing_to(place: Path | str) -> Iterator[None]:
    """Turns a full, read-only or missing disk or bucket into a `CacheError` that names it."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{place}: writing failed ({reason(error)}). What was committed before stays; mend "
            "the disk or the network and run the same command again"
        ) from error


@contextmanager
def reading_from(place: Path | str) -> Iterator[None]:
    """Turns a disk or bucket that does not answer into a `CacheError` that names it."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{place}: reading failed ({reason(error)}). Mend the disk or the network and run the "
            "same command again"
        ) from error


def reason(error: OSError) -> str:
    """What the system says of a fault, without the path."""
    return error.strerror or str(error) or type(error).__name__


def replace_file(path: Path, content: bytes) -> None:
    """Gives ``path`` this content, atomically and durably."""
    with written_aside(path.parent) as (file, aside):
        _write_and_sync(file, content)
        aside.replace(path)
    sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Creates ``path`` with this content, or returns False where it exists already.

    Of any number of writers racing for one path exactly one gets True, and no reader ever sees
    a part of the content (the name is a hard link to a file that is already whole and synced).
    """
    with written_aside(path.parent) as (file, aside):
        _write_and_sync(file, content)
        try:
            os.link(aside, path)
            created = True
        except FileExistsError:
            created = False
    # The loser syncs too: what it builds on the winner's file must not outlive that file.
    sync_folder(path.parent)
    return created


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that what is put there outlives a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_sync(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
