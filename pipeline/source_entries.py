"""Files as folders, lists, archives and data sets name them, with what these say of them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.spans import Span

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What people say of a source; nothing that is encoded depends on it."""

    label: str | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileVersion:
    """What tells without reading a file whether it is still the same."""

    size: int
    """Bytes."""
    mtime_ns: int = 0
    """Time of its last change; 0 where there is an etag, or nobody knows."""
    etag: str = ""
    """What the server says of its content; empty where it says nothing."""

    @property
    def tells(self) -> bool:
        """Whether an equal version means equal bytes; a size alone does not."""
        return bool(self.mtime_ns or self.etag)


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedFile:
    """A file, or a stretch of one, that somebody named."""

    place: str
    """Local path, URL, or where a member of an archive lies (see `pipeline.source_places`)."""
    uri: str = ""
    """Its name on record, where that is not its place."""
    span: Span | None = None
    annotation: Annotation | None = None
    version: FileVersion | None = None
    """As it was listed; None where the listing does not tell."""
