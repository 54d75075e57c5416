"""Videos in tar files as WebDataset lays them out: members that share a key belong together.

``000001.mp4``, ``000001.json``, ``000001.txt`` and ``000001.cls`` have the key ``000001``.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from latents.errors import SourceError
from pipeline.source_columns import annotation_of
from pipeline.source_entries import VIDEO_SUFFIXES, Annotation, FileVersion, NamedFile
from pipeline.source_urls import is_url, open_url, patiently, version_of_url

_MAX_ANNOTATION_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """Where the bytes of a member lie."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TarIndex:
    """The videos of a tar file, and what lies beside them."""

    videos: dict[str, TarMember]
    """By name, in the tar's order."""
    annotations: dict[str, Annotation]
    """By key."""


def files_of_tar(tar: str) -> Iterator[NamedFile]:
    """The videos in a tar file at a local path or URL.

    Raises:
        SourceError: It is no plain tar file, or holds no video.
    """
    version = patiently(lambda: version_of_tar(tar))
    index = patiently(lambda: _index(tar, version))
    if not index.videos:
        raise SourceError(
            f"{tar} holds no video (looked for members named {' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    for name, member in index.videos.items():
        yield NamedFile(
            place=f"slice://{member.offset},{member.size}/{name}::{tar}",
            uri=f"tar://{name}::{tar}",
            annotation=index.annotations.get(_key(name)),
            version=replace(version, size=member.size),
        )


def find_member(tar: str, name: str) -> TarMember:
    """A video of a tar file by its name.

    Raises:
        FileNotFoundError: The tar has none of that name, or is not there itself.
        OSError: It cannot be read.
    """
    try:
        index = _index(tar, version_of_tar(tar))
    except SourceError as error:
        raise OSError(str(error)) from error
    try:
        return index.videos[name]
    except KeyError:
        raise FileNotFoundError(f"{tar} has no member {name!r}") from None


def version_of_tar(tar: str) -> FileVersion:
    """What tells whether a tar file changed; raises `OSError` where it cannot be looked up."""
    if is_url(tar):
        return version_of_url(tar)
    found = os.stat(tar)
    return FileVersion(size=found.st_size, mtime_ns=found.st_mtime_ns)


@contextmanager
def open_tar_bytes(tar: str) -> Iterator[BinaryIO]:
    """A tar file's bytes, to be read here and there."""
    if is_url(tar):
        with open_url(tar, seeks=True) as file:
            yield file
    else:
        with open(tar, "rb") as file:
            yield file


@lru_cache(maxsize=8)
def _index(tar: str, version: FileVersion) -> TarIndex:
    """The index of a tar file, read once while its version (the key) stays the same."""
    videos: dict[str, TarMember] = {}
    said: dict[str, dict[str, object]] = {}
    try:
        with open_tar_bytes(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.sparse is not None:
                    continue
                if PurePosixPath(member.name).suffix.lower() in VIDEO_SUFFIXES:
                    _require_new(tar, member.name, videos)
                    videos[member.name] = TarMember(offset=member.offset_data, size=member.size)
                else:
                    beside = said.setdefault(_key(member.name), {})
                    beside.update(_said_in(tar, archive, member))
    except tarfile.TarError as error:
        raise SourceError(
            f"{tar} cannot be read as a tar file ({error}); wanted a plain one: unpack a "
            "compressed one, and fetch a damaged one again"
        ) from error
    return TarIndex(videos=videos, annotations=_annotations(tar, videos, said))


def _require_new(tar: str, name: str, videos: dict[str, TarMember]) -> None:
    if name in videos or "::" in name:
        problem = "holds two members" if name in videos else "holds a member with :: in its name,"
        raise SourceError(f"{tar} {problem} {name[:200]!r}; name each member once, without ::")


def _annotations(
    tar: str, videos: dict[str, TarMember], said: dict[str, dict[str, object]]
) -> dict[str, Annotation]:
    found: dict[str, Annotation] = {}
    for key in {_key(name) for name in videos} & said.keys():
        if annotation := annotation_of(said[key], where=f"{tar}, member {key[:200]!r}"):
            found[key] = annotation
    return found


def _key(name: str) -> str:
    """What members that belong together begin with: all up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _said_in(tar: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, object]:
    """What a member says of the video beside it, by column."""
    suffix = PurePosixPath(member.name).suffix.lower()
    if suffix not in (".json", ".txt", ".cls"):
        return {}
    where = f"{tar}, member {member.name[:200]!r}"
    if member.size > _MAX_ANNOTATION_BYTES:
        raise SourceError(f"{where} has {member.size} bytes; wanted a text of up to 1 MiB")
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    try:
        text = file.read().decode()
        return _columns_of_json(text) if suffix == ".json" else _column_of_text(suffix, text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: wanted UTF-8 text or a JSON object ({error})") from error


def _column_of_text(suffix: str, text: str) -> dict[str, object]:
    return {"label" if suffix == ".cls" else "caption": text.strip()}


def _columns_of_json(text: str) -> dict[str, object]:
    parsed: Any = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"found {type(parsed).__name__}")
    # Classes by number are common here; a tar is not edited as easily as a list.
    return {
        key: str(value) if type(value) is int else value
        for key, value in parsed.items()
        if isinstance(value, str | int | None)
    }
