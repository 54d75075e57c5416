"""What to ingest: folders, files, lists and scenes, each with the digest of its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from latents.errors import SourceError
from latents.recipe import sha256_hex
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
_MAX_SCENES = 10**7
_MAX_SCENE_SECONDS = 3600
"""The sound of a scene is made in one piece."""
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What people say of a source; nothing that is encoded depends on it."""

    label: str | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video or scene, before it is hashed."""

    uri: str
    path: Path | None
    """The file; None for a scene."""
    scene: SceneRef | None
    annotation: Annotation | None = None
    """What a list says of it."""


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
            line, .jsonl with a ``file`` and perhaps ``label``, ``caption`` and ``split`` a line,
            paths relative to the list), and
            ``scenes:SEED:NUM`` or ``scenes:SEED:NUM:SECONDS``.

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
            raise SourceError(
                f"{argument[:100]}: {place} cannot be looked up ({error.strerror})"
            ) from error
    return list(found.values())


def hash_sources(
    sources: Sequence[Source],
    known: Mapping[str, KnownFile],
    *,
    num_threads: int,
    rehash: bool = False,
    on_hashed: Callable[[int, int], None] = lambda done, total: None,
) -> list[HashedSource | UnreadableSource]:
    """Digests of all sources; a file is read again only when its size or time changed.

    With ``rehash`` every file is read, for disks and copying tools that do not keep times.
    """
    trusted = {} if rehash else known
    hashed: list[HashedSource | UnreadableSource] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for one in pool.map(lambda source: _hash(source, trusted.get(source.uri)), sources):
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
        yield from _read_list(path)
    else:
        yield _file(path)


def source_of_uri(uri: str) -> Source:
    """The source that was recorded under a URI; raises `SourceError` where it is none of ours."""
    if uri.startswith("scenes:"):
        try:
            seed, index, seconds = map(int, uri.split(":")[1:])
            _check_scene(seed, index, seconds)
            if uri != f"scenes:{seed}:{index}:{seconds}":
                raise ValueError("it is written differently")
        except ValueError:
            raise SourceError(
                f"{uri[:100]!r} is no scene; wanted scenes:SEED:INDEX:SECONDS"
            ) from None
        return Source(uri=uri, path=None, scene=SceneRef(seed=seed, index=index, seconds=seconds))
    return Source(uri=uri, path=Path(uri), scene=None)


def part_of(sources: Sequence[Source], *, part: int, num_parts: int) -> list[Source]:
    """The sources of one of ``num_parts`` disjoint parts, counted from 1, by a hash of the URI."""
    return [
        source
        for source in sources
        if int(sha256_hex(source.uri.encode())[:15], 16) % num_parts == part - 1
    ]


def _file(path: Path, annotation: Annotation | None = None) -> Source:
    absolute = Path(os.path.abspath(path))
    # Rows hold UTF-8 alone, and a name may be of any bytes.
    uri = os.fsencode(absolute).decode(errors="backslashreplace")
    return Source(uri=uri, path=absolute, scene=None, annotation=annotation)


def _read_list(path: Path) -> Iterator[Source]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as a list of paths: {error}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise SourceError(f"{path} lists no paths")
    for number, entry in enumerate(entries, start=1):
        name, annotation = entry, None
        if path.suffix.lower() == ".jsonl":
            name, annotation = _read_entry(path, number, entry)
        file = path.parent / name
        if not file.exists():
            raise SourceError(f"{path}, entry {number}: {str(file)[:200]} does not exist")
        yield _file(file, annotation)


def _read_entry(path: Path, number: int, entry: str) -> tuple[str, Annotation | None]:
    """File and annotation in one line of a .jsonl list."""
    try:
        parsed = json.loads(entry)
        name = os.fspath(parsed["file"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f'{path}, entry {number}: wanted a JSON object with a "file", got {entry[:60]!r}'
        ) from error
    said = {key: parsed.get(key) for key in ("label", "caption", "split")}
    for key, value in said.items():
        if value is not None and not (isinstance(value, str) and _is_utf8(value)):
            raise SourceError(
                f"{path}, entry {number}: {key} is {repr(value)[:100]}; wanted a text"
            )
    return name, Annotation(**said) if any(said.values()) else None


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


def _hash(source: Source, known: KnownFile | None) -> HashedSource | UnreadableSource:
    if source.scene is not None:
        return HashedSource(source=source, size=0, mtime_ns=0, digest=scene_digest(source.scene))
    assert source.path is not None
    try:
        found = source.path.stat()
        if fault := _fault(source.path, found):
            return UnreadableSource(source=source, reason=fault)
        if known and (known.size, known.mtime_ns) == (found.st_size, found.st_mtime_ns):
            digest = known.digest
        else:
            with source.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return UnreadableSource(source=source, reason=f"the file cannot be read ({error.strerror})")
    except ValueError:
        return UnreadableSource(source=source, reason="no file can have that name")
    return HashedSource(
        source=source, size=found.st_size, mtime_ns=found.st_mtime_ns, digest=digest
    )


def _fault(path: Path, found: os.stat_result) -> str | None:
    """Why a file is not opened: a device or pipe has no end, and rows cannot hold the others."""
    if not stat.S_ISREG(found.st_mode):
        return "the file cannot be read (it is no file but a folder, device or pipe)"
    if not _is_utf8(str(path)):
        return "the file's name is not UTF-8; rename it"
    if not -(2**63) <= found.st_mtime_ns < 2**63:
        return "the file was last changed after the year 2262, it says; touch it"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
