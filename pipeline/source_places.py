"""Where the bytes of a source lie, and how they are had.

A place is a local path; a URL; ``tar://NAME::TAR``, a member of a tar file at a local path or URL;
or ``slice://OFFSET,SIZE/NAME::TAR``, the same once its place in the tar is known.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

from pipeline.source_entries import FileVersion
from pipeline.source_tars import TarMember, find_member, open_tar_bytes, version_of_tar
from pipeline.source_urls import is_url, open_url, path_of_url, version_of_url

_PIECE_BYTES = 2**20


def version_of_place(place: str) -> FileVersion:
    """What tells whether the bytes at a place changed.

    Raises:
        FileNotFoundError: There are none.
        OSError: They cannot be looked up.
    """
    if inside := _member(place):
        tar, find = inside
        return replace(version_of_tar(tar), size=find().size)
    if is_url(place):
        return version_of_url(place)
    found = os.stat(place)
    return FileVersion(size=found.st_size, mtime_ns=found.st_mtime_ns)


def pieces_of_place(place: str) -> Generator[bytes, None, None]:
    """The bytes at a place, a piece at a time; raises as `version_of_place`."""
    with _open(place) as (file, left):
        while piece := file.read(min(_PIECE_BYTES, left)):
            left -= len(piece)
            yield piece


def digest_of_place(place: str) -> str:
    """SHA-256 of the bytes at a place, in hex; raises as `version_of_place`."""
    digest = hashlib.sha256()
    for piece in pieces_of_place(place):
        digest.update(piece)
    return digest.hexdigest()


def suffix_of_place(place: str) -> str:
    """The suffix of the file's name, by which decoders tell some formats."""
    suffix = os.path.splitext(path_of_url(place) if is_url(place) else place)[1]
    return suffix if suffix[1:].isalnum() and len(suffix) < 8 else ""


@contextmanager
def _open(place: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file that stands where the bytes begin, and how many there are at most."""
    if inside := _member(place):
        tar, find = inside
        member = find()
        with open_tar_bytes(tar) as file:
            file.seek(member.offset)
            yield file, member.size
    elif is_url(place):
        with open_url(place, seeks=False) as file:
            yield file, sys.maxsize
    else:
        with open(place, "rb") as file:
            yield file, sys.maxsize


def _member(place: str) -> tuple[str, Callable[[], TarMember]] | None:
    """The tar that a place lies in, and how to find where; None where it is in none."""
    scheme, _, rest = place.partition("://")
    name, chain, tar = rest.partition("::")
    if scheme == "slice":
        offset, size = map(int, name.partition("/")[0].split(","))
        return tar, lambda: TarMember(offset=offset, size=size)
    if scheme == "tar" and chain:
        return tar, lambda: find_member(tar, name)
    return None
