"""AudioSet: segments of videos by its published lists, with files that were fetched one by one."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import PurePosixPath

from latents.errors import SourceError
from pipeline.source_columns import is_utf8, seconds_from
from pipeline.source_entries import Annotation, NamedFile
from pipeline.source_search import videos_below
from pipeline.spans import Span

_log = logging.getLogger(__name__)

_SPLITS = {"eval": "test", "test": "test", "train": "train", "valid": "validation"}
_HEADER = ("YTID", "start_seconds", "end_seconds", "positive_labels")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSegment:
    """A row of one of AudioSet's lists."""

    video: str
    """YouTube's id."""
    span: Span
    labels: tuple[str, ...]
    """Codes of its ontology, such as ``/m/09x0r``."""


def audioset_files(argument: str) -> Iterator[NamedFile]:
    """The segments of ``CSV:FOLDER`` whose videos lie in the folder; how many do not is logged.

    A file named by the id and the segment's start, with or without its end, is the segment; one
    named by the id alone is the whole video, of which the segment is a stretch. A start and an
    end are written in seconds (``30``, ``30.000``, ``000030``) or milliseconds (``30000``). The
    label is that of the list: codes joined by commas. The split is by the list's name.

    Raises:
        SourceError: The list or the folder cannot be read, or no segment has a file.
    """
    place, folder = _parse(argument)
    files: dict[str, NamedFile] = {}
    for video in videos_below(folder):
        files.setdefault(PurePosixPath(video.place.partition("::")[0]).stem, video)
    split = split_of_list(place)
    num_segments = num_found = 0
    for segment in read_segments(place):
        num_segments += 1
        if (named := _file_of(segment, files)) is not None:
            num_found += 1
            yield replace(
                named, annotation=Annotation(label=",".join(segment.labels) or None, split=split)
            )
    if not num_found:
        raise SourceError(
            f"none of the {num_segments} segments of {place} has a file in {folder}; wanted names "
            "such as YTID.mp4 or YTID_30.mp4"
        )
    if num_found < num_segments:
        num_missing = num_segments - num_found
        _log.warning(
            "%s: %d of %d segments have no file in %s", place, num_missing, num_segments, folder
        )


def split_of_list(place: str) -> str | None:
    """The split of a published list by its name; None for a name that says nothing."""
    name = PurePosixPath(place).name.lower()
    return next((split for sign, split in _SPLITS.items() if sign in name), None)


def read_segments(place: str) -> Iterator[LabelledSegment]:
    """The rows of a published list, which begins with lines of comments.

    Raises:
        SourceError: It cannot be read, or a row of it is none.
    """
    try:
        with open(place, encoding="utf-8", newline="") as lines:
            rows = csv.reader(
                (line for line in lines if not line.startswith("#")),
                skipinitialspace=True,
                strict=True,
            )
            for number, row in enumerate(rows, start=1):
                if row:
                    yield _segment(row, f"{place}, row {number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{place} cannot be read as a list of segments: {error}") from error


def _parse(argument: str) -> tuple[str, str]:
    place, suffix, folder = argument.partition(".csv:")
    if not suffix or not folder:
        raise SourceError(
            f"'audioset:{argument[:200]}': wanted audioset:CSV:FOLDER, for example "
            "audioset:balanced_train_segments.csv:videos"
        )
    return f"{place}.csv", folder.rstrip("/")


def _segment(row: list[str], where: str) -> LabelledSegment:
    if len(row) != len(_HEADER):
        raise SourceError(
            f"{where}: found {len(row)} columns; wanted {len(_HEADER)}: {', '.join(_HEADER)}"
        )
    video, start, stop, labels = (cell.strip() for cell in row)
    if not video or not is_utf8(video) or "/" in video:
        raise SourceError(f"{where}, column {_HEADER[0]!r}: found {video[:100]!r}; wanted an id")
    bounds: list[Decimal] = []
    for column, cell in zip(_HEADER[1:3], (start, stop), strict=True):
        try:
            bounds.append(seconds_from(cell))
        except ValueError as error:
            raise SourceError(
                f"{where}, column {column!r}: found {cell[:100]!r}; wanted seconds"
            ) from error
    try:
        span = Span(start_seconds=bounds[0], stop_seconds=bounds[1])
    except ValueError as error:
        raise SourceError(f"{where}, column {_HEADER[2]!r}: {error}") from error
    return LabelledSegment(video=video, span=span, labels=tuple(filter(None, labels.split(","))))


def _file_of(segment: LabelledSegment, files: Mapping[str, NamedFile]) -> NamedFile | None:
    starts, stops = map(_spellings, (segment.span.start_seconds, segment.span.stop_seconds))
    for start, stop in zip(starts, stops, strict=True):
        for name in (f"{segment.video}_{start}_{stop}", f"{segment.video}_{start}"):
            with suppress(KeyError):
                return files[name]
    whole = files.get(segment.video)
    return None if whole is None else replace(whole, span=segment.span)


def _spellings(seconds: Decimal) -> tuple[str, ...]:
    """A time as files are named by it: in seconds, in several ways, and in milliseconds."""
    plain = f"{seconds.normalize():f}"
    return plain, f"{seconds:.1f}", f"{seconds:.3f}", plain.zfill(6), f"{seconds * 1000:.0f}"
