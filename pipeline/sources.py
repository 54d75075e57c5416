"""What to ingest: files wherever they lie, stretches of them, and scenes, each with its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latents.errors import SourceError
from latents.recipe import sha256_hex
from pipeline.datasets.aist import aist_files
from pipeline.datasets.audioset import audioset_files
from pipeline.datasets.landscape import landscape_files
from pipeline.scene_clips import SceneRef
from pipeline.source_columns import split_fragment
from pipeline.source_entries import Annotation, FileVersion, NamedFile
from pipeline.source_search import files_named_by
from pipeline.source_urls import is_url
from pipeline.spans import Span

DEFAULT_SCENE_SECONDS = 4
_MAX_SCENES = 10**7
_MAX_SCENE_SECONDS = 3600
"""The sound of a scene is made in one piece."""
_MAX_SEED = 2**63 - 1
_DATASETS: Mapping[str, Callable[[str], Iterator[NamedFile]]] = {
    "aist:": aist_files,
    "audioset:": audioset_files,
    "landscape:": landscape_files,
}
"""Data sets as they are distributed, by how an argument that names one begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video, stretch of a video, or scene, before it is hashed."""

    uri: str
    path: Path | None
    """The local file; None for a scene and for what must be fetched."""
    scene: SceneRef | None
    annotation: Annotation | None = None
    """What a list says of it."""
    place: str = ""
    """Where what must be fetched lies (see `pipeline.source_places`)."""
    span: Span | None = None
    """The stretch of the file that is the source; None for all of it."""
    listed: FileVersion | None = None
    """What a listing told of a file that must be fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedSource:
    """A source and the digest of its bytes."""

    source: Source
    size: int
    mtime_ns: int
    digest: str
    etag: str = ""
    """What the server of a file says of its content; empty for local files and scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadableSource:
    """A source whose bytes cannot be read."""

    source: Source
    reason: str
    error_class: str = "DecodeError"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """What the log says of a file: enough to tell whether it must be hashed again."""

    size: int
    mtime_ns: int
    digest: str
    etag: str = ""


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Every source that the arguments name, each URI once, in order.

    Args:
        arguments: Each of them one of these.

            - A folder, which is searched through, or a pattern, such as ``videos/**/*.mp4``.
            - A video, or a stretch of one in seconds: ``long.mp4#t=420,430``.
            - A list: .txt or .lst with a path a line; .jsonl, .csv, .tsv or .parquet with
              columns as `pipeline.source_columns` has them. Paths are relative to the list.
            - A .tar of videos as WebDataset lays them out.
            - Any of these as a URL that fsspec knows, such as ``s3://bucket/videos/``.
            - ``landscape:FOLDER``, ``aist:FOLDER`` or ``audioset:CSV:FOLDER``.
            - ``scenes:SEED:NUM`` or ``scenes:SEED:NUM:SECONDS``.

    Raises:
        SourceError: Something named is not there, or holds no video.
    """
    found: dict[str, Source] = {}
    for argument in arguments:
        try:
            for source in _expand(argument):
                # A list may say more of a file than the folder that it lies in.
                if source.uri not in found or source.annotation is not None:
                    found[source.uri] = source
        except OSError as error:
            place = str(error.filename)[:100]
            fault = f"{place} cannot be looked up ({error.strerror})" if error.strerror else error
            raise SourceError(f"{argument[:100]}: {str(fault)[:500]}") from error
    return list(found.values())


def source_of_uri(uri: str) -> Source:
    """The source that was recorded under a URI; raises `SourceError` where it is none of ours."""
    if uri.startswith("scenes:"):
        return _recorded_scene(uri)
    try:
        name, span = split_fragment(uri)
    except ValueError:
        name, span = uri, None
    if is_url(name):
        return Source(uri=uri, path=None, scene=None, place=name, span=span)
    return Source(uri=uri, path=Path(name), scene=None, span=span)


def part_of(sources: Sequence[Source], *, part: int, num_parts: int) -> list[Source]:
    """The sources of one of ``num_parts`` disjoint parts, counted from 1, by a hash of the URI."""
    return [
        source
        for source in sources
        if int(sha256_hex(source.uri.encode())[:15], 16) % num_parts == part - 1
    ]


def _expand(argument: str) -> Iterator[Source]:
    if argument.startswith("scenes:"):
        yield from _scenes(argument)
        return
    for name, files_of in _DATASETS.items():
        if argument.startswith(name):
            yield from map(_source, files_of(argument.removeprefix(name)))
            return
    yield from map(_source, files_named_by(argument))


def _source(named: NamedFile) -> Source:
    is_fetched = is_url(named.place)
    place = named.place if is_fetched else os.path.abspath(named.place)
    # Rows hold UTF-8 alone, and a name may be of any bytes.
    name = os.fsencode(named.uri or place).decode(errors="backslashreplace")
    if split_fragment(name)[1] is not None:
        raise SourceError(f"{name[:200]}: its name ends as that of a stretch does; rename it")
    return Source(
        uri=named.span.of_uri(name) if named.span else name,
        path=None if is_fetched else Path(place),
        scene=None,
        annotation=named.annotation,
        place=place if is_fetched else "",
        span=named.span,
        listed=named.version if is_fetched else None,
    )


def _recorded_scene(uri: str) -> Source:
    try:
        seed, index, seconds = map(int, uri.split(":")[1:])
        _check_scene(seed, index, seconds)
        if uri != f"scenes:{seed}:{index}:{seconds}":
            raise ValueError("it is written differently")
    except ValueError:
        raise SourceError(f"{uri[:100]!r} is no scene; wanted scenes:SEED:INDEX:SECONDS") from None
    return Source(uri=uri, path=None, scene=SceneRef(seed=seed, index=index, seconds=seconds))


def _scenes(argument: str) -> Iterator[Source]:
    try:
        numbers = [int(part) for part in argument.split(":")[1:]]
        seed, count, seconds = (*numbers, DEFAULT_SCENE_SECONDS) if len(numbers) == 2 else numbers
        _check_scene(seed, 0, seconds)
        if not 1 <= count <= _MAX_SCENES:
            raise ValueError(f"{count} scenes")
    except ValueError:
        raise SourceError(
            f"{argument[:100]!r}: wanted scenes:SEED:NUM or scenes:SEED:NUM:SECONDS, for example "
            f"scenes:0:48; up to {_MAX_SCENES} scenes of up to {_MAX_SCENE_SECONDS} s"
        ) from None
    for index in range(count):
        scene = SceneRef(seed=seed, index=index, seconds=seconds)
        yield Source(uri=f"scenes:{seed}:{index}:{seconds}", path=None, scene=scene)


def _check_scene(seed: int, index: int, seconds: int) -> None:
    is_possible = 0 <= seed <= _MAX_SEED and 0 <= index < _MAX_SCENES
    if not is_possible or not 1 <= seconds <= _MAX_SCENE_SECONDS:
        raise ValueError("a number is out of range")
