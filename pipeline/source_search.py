"""What an argument names: a file, a folder, a pattern, a list or a tar file, here or at a URL."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from latents.errors import SourceError
from pipeline.source_columns import split_fragment
from pipeline.source_entries import VIDEO_SUFFIXES, FileVersion, NamedFile
from pipeline.source_lists import LIST_SUFFIXES, read_list
from pipeline.source_tars import files_of_tar
from pipeline.source_urls import (
    files_below,
    is_url,
    is_url_pattern,
    matching_files,
    path_of_url,
    patiently,
    require_protocol,
)

TAR_SUFFIX = ".tar"
_SIGNS = frozenset("*?[")


def files_named_by(argument: str) -> Iterator[NamedFile]:
    """The files that an argument stands for, in order.

    Raises:
        SourceError: What it names is not there, or holds no video.
        OSError: It cannot be looked up.
    """
    argument = argument.removeprefix("file://")
    try:
        name, span = split_fragment(argument)
    except ValueError as error:
        raise SourceError(f"{argument[:200]}: {error}") from error
    if span is not None:
        yield NamedFile(place=name, span=span)
    elif is_url(argument):
        yield from _files_at_url(argument)
    else:
        yield from _local_files(argument)


def videos_below(folder: str) -> list[NamedFile]:
    """The videos in a folder, here or at a URL, and in its folders, in order.

    Raises:
        SourceError: It is not there, or holds none.
        OSError: It cannot be looked up.
    """
    if is_url(folder):
        found = _videos(patiently(lambda: files_below(folder)))
    else:
        if not Path(folder).is_dir():
            raise SourceError(f"{folder} is no folder; wanted one that holds videos")
        files = sorted(
            f for f in Path(folder).rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file()
        )
        found = [NamedFile(place=str(file)) for file in files]
    if not found:
        raise SourceError(
            f"{folder} holds no video (looked through it for files named "
            f"{' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return found


def _local_files(argument: str) -> Iterator[NamedFile]:
    path = Path(argument)
    if path.is_dir():
        yield from videos_below(str(path))
    elif path.exists():
        yield from _expand_file(NamedFile(place=str(path)))
    elif _SIGNS & set(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        yield from _expand_matches(argument, [NamedFile(place=match) for match in matches])
    else:
        raise SourceError(
            f"{path} does not exist; name a folder, a video, a list of paths, a tar file, a "
            "pattern in quotes, a URL, or scenes:SEED:NUM"
        )


def _files_at_url(url: str) -> Iterator[NamedFile]:
    require_protocol(url)
    if is_url_pattern(url):
        found = patiently(lambda: matching_files(url))
        yield from _expand_matches(url, [_listed(*one) for one in found.items()])
    elif _suffix(url) in LIST_SUFFIXES | VIDEO_SUFFIXES | {TAR_SUFFIX}:
        yield from _expand_file(NamedFile(place=url))
    elif below := patiently(lambda: files_below(url)):
        found_videos = _videos(below)
        if not found_videos:
            raise SourceError(f"{url} holds {len(below)} files, and no video among them")
        yield from found_videos
    else:
        yield NamedFile(place=url)


def _expand_file(named: NamedFile) -> Iterator[NamedFile]:
    suffix = _suffix(named.place)
    if suffix in LIST_SUFFIXES:
        for entry in read_list(named.place):
            is_tar = _suffix(entry.place) == TAR_SUFFIX and entry.span is None
            yield from files_of_tar(entry.place) if is_tar else (entry,)
    elif suffix == TAR_SUFFIX:
        yield from files_of_tar(named.place)
    else:
        yield named


def _expand_matches(pattern: str, matches: Iterable[NamedFile]) -> Iterator[NamedFile]:
    """Videos and tar files among the matches; all of them where the pattern ends in a suffix."""
    ending = _suffix(pattern)
    takes_all = bool(ending) and not _SIGNS & set(ending)
    is_empty = True
    for match in matches:
        if takes_all or _suffix(match.place) in VIDEO_SUFFIXES | {TAR_SUFFIX}:
            is_empty = False
            yield from _expand_file(match)
    if is_empty:
        raise SourceError(
            f"{pattern[:200]} matches no video; wanted a pattern such as 'videos/**/*.mp4', in "
            "quotes"
        )


def _videos(found: dict[str, FileVersion]) -> list[NamedFile]:
    return [_listed(*one) for one in found.items() if _suffix(one[0]) in VIDEO_SUFFIXES]


def _listed(url: str, version: FileVersion) -> NamedFile:
    return NamedFile(place=url, version=version if version.tells else None)


def _suffix(place: str) -> str:
    return os.path.splitext(path_of_url(place) if is_url(place) else place)[1].lower()
