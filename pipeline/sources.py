"""What to ingest: folders, files, lists and scenes, each with the digest of its bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from latents.errors import SourceError
from pipeline.scene_clips import SceneRef, scene_digest

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "3gp",
        "avi",
        "flv",
        "m2ts",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpeg",
        "mpg",
        "mts",
        "ogv",
        "ts",
        "webm",
        "wmv",
    )
)
LIST_SUFFIXES = frozenset({".txt", ".lst", ".jsonl"})
DEFAULT_SCENE_SECONDS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video or scene, before it is hashed."""

    uri: str
    path: Path | None
    """The file; None for a scene."""
    scene: SceneRef | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedSource:
    """A source and the digest of its bytes."""

    source: Source
    size: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadableSource:
    """A source whose bytes cannot be read."""

    source: Source
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """What the log says of a file: enough to tell whether it must be hashed again."""

    size: int
    mtime_ns: int
    digest: str


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Every source that the arguments name, each URI once, in order.

    Args:
        arguments: Folders (searched through), video files, lists (.txt or .lst with a path a
            line, .jsonl with a ``file`` a line, paths relative to the list), and
            ``scenes:SEED:NUM`` or ``scenes:SEED:NUM:SECONDS``.

    Raises:
        SourceError: Something named is not there, or holds no video.
    """
    found: dict[str, Source] = {}
    for argument in arguments:
        for source in _expand(argument):
            found.setdefault(source.uri, source)
    return list(found.values())


def hash_sources(
    sources: Sequence[Source],
    known: Mapping[str, KnownFile],
    *,
    num_threads: int,
    on_hashed: Callable[[int, int], None] = lambda done, total: None,
) -> list[HashedSource | UnreadableSource]:
    """Digests of all sources; a file is read again only when its size or time changed."""
    hashed: list[HashedSource | UnreadableSource] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for one in pool.map(lambda source: _hash(source, known.get(source.uri)), sources):
            hashed.append(one)
            on_hashed(len(hashed), len(sources))
    return hashed


def _expand(argument: str) -> Iterator[Source]:
    if argument.startswith("scenes:"):
        yield from _scenes(argument)
        return
    path = Path(argument)
    if path.is_dir():
        files = sorted(
            f for f in path.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file()
        )
        if not files:
            raise SourceError(
                f"{path} holds no video (looked through it for files named "
                f"{' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        yield from map(_file, files)
    elif not path.exists():
        raise SourceError(
            f"{path} does not exist; name a folder, a video, a list of paths, or scenes:SEED:NUM"
        )
    elif path.suffix.lower() in LIST_SUFFIXES:
        yield from map(_file, _read_list(path))
    else:
        yield _file(path)


def _file(path: Path) -> Source:
    absolute = Path(os.path.abspath(path))
    return Source(uri=str(absolute), path=absolute, scene=None)


def _read_list(path: Path) -> Iterator[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as a list of paths: {error}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise SourceError(f"{path} lists no paths")
    for number, entry in enumerate(entries, start=1):
        name = entry
        if path.suffix.lower() == ".jsonl":
            try:
                name = os.fspath(json.loads(entry)["file"])
            except (ValueError, KeyError, TypeError) as error:
                raise SourceError(
                    f'{path}, entry {number}: wanted a JSON object with a "file", got '
                    f"{entry[:60]!r}"
                ) from error
        file = path.parent / name
        if not file.exists():
            raise SourceError(f"{path}, entry {number}: {file} does not exist")
        yield file


def _scenes(argument: str) -> Iterator[Source]:
    try:
        numbers = [int(part) for part in argument.split(":")[1:]]
        seed, count, seconds = (*numbers, DEFAULT_SCENE_SECONDS) if len(numbers) == 2 else numbers
        if seed < 0 or count < 1 or seconds < 1:
            raise ValueError("a number is out of range")
    except ValueError:
        raise SourceError(
            f"{argument!r}: wanted scenes:SEED:NUM or scenes:SEED:NUM:SECONDS, "
            "for example scenes:0:48"
        ) from None
    for index in range(count):
        scene = SceneRef(seed=seed, index=index, seconds=seconds)
        yield Source(uri=f"scenes:{seed}:{index}:{seconds}", path=None, scene=scene)


def _hash(source: Source, known: KnownFile | None) -> HashedSource | UnreadableSource:
    if source.scene is not None:
        return HashedSource(source=source, size=0, mtime_ns=0, digest=scene_digest(source.scene))
    assert source.path is not None
    try:
        stat = source.path.stat()
        if known and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            digest = known.digest
        else:
            with source.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return UnreadableSource(source=source, reason=f"the file cannot be read ({error.strerror})")
    return HashedSource(source=source, size=stat.st_size, mtime_ns=stat.st_mtime_ns, digest=digest)
