"""What the columns of a list mean, and its rows as files, stretches and annotations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from latents.errors import SourceError
from pipeline.source_entries import Annotation, NamedFile
from pipeline.spans import Span

COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file", "path", "url", "uri", "video", "filename", "file_name", "video_path"),
    "start": ("start", "start_seconds", "start_time", "begin"),
    "stop": ("stop", "stop_seconds", "end", "end_seconds", "end_time"),
    "span": ("span",),
    "label": ("label", "class", "category"),
    "caption": ("caption", "text", "description"),
    "split": ("split", "subset"),
}
"""Meanings, and the names that columns of each may have."""

_MEANING = {name: meaning for meaning, names in COLUMNS.items() for name in names}
_FRAGMENT = re.compile(r"(.*)#t=(\d{1,9}(?:\.\d{1,9})?),(\d{1,9}(?:\.\d{1,9})?)", re.DOTALL)
_NANOSECOND = Decimal("1e-9")
_MAX_NUMBER_TEXT = 64


def split_fragment(name: str) -> tuple[str, Span | None]:
    """A name and the stretch that it ends in, as in ``long.mp4#t=420,430``.

    Raises:
        ValueError: The stretch cannot be.
    """
    match = _FRAGMENT.fullmatch(name) if "#t=" in name else None
    if match is None:
        return name, None
    file, start, stop = match.groups()
    return file, Span(start_seconds=Decimal(start), stop_seconds=Decimal(stop))


def named_in_row(
    row: Mapping[str, object], *, where: str, locate: Callable[[str], str]
) -> NamedFile:
    """The file that a row of a list names.

    Args:
        row: Cells by the name of their column; None and the empty text are no value.
        where: The list and the row, for messages.
        locate: From a name in the list to the file's place.

    Raises:
        SourceError: A cell does not hold what its column is for.
    """
    columns = meanings(tuple(row), where)
    if "file" not in columns:
        raise SourceError(
            f"{where}: found the columns {', '.join(map(repr, row))[:300]}; wanted one named "
            f"{' or '.join(COLUMNS['file'])}"
        )
    name = row[columns["file"]]
    if not isinstance(name, str) or not name:
        raise _wrong(where, columns["file"], name, "a path or a URL")
    try:
        name, fragment = split_fragment(name)
    except ValueError as error:
        raise SourceError(f"{where}, column {columns['file']!r}: {error}") from error
    span = _span(row, columns, where)
    if span and fragment:
        raise _wrong(where, columns["file"], fragment, "one stretch, here or in other columns")
    try:
        place = locate(name)
    except SourceError as error:
        raise SourceError(f"{where}, column {columns['file']!r}: {error}") from error
    return NamedFile(place=place, span=span or fragment, annotation=annotation_of(row, where=where))


def annotation_of(row: Mapping[str, object], *, where: str) -> Annotation | None:
    """What a row says of its file; None where it says nothing.

    Raises:
        SourceError: It is no text.
    """
    columns = meanings(tuple(row), where)
    said: dict[str, str | None] = {}
    for meaning in ("label", "caption", "split"):
        value = row[columns[meaning]] if meaning in columns else None
        if value is not None and not (isinstance(value, str) and is_utf8(value)):
            raise SourceError(f"{where}: {columns[meaning]} is {repr(value)[:100]}; wanted a text")
        said[meaning] = value or None
    return Annotation(**said) if any(said.values()) else None


def meanings(names: tuple[str, ...], where: str) -> Mapping[str, str]:
    """The columns that mean something, by their meaning.

    Where a column is called by the meaning itself, others of that meaning say nothing.

    Raises:
        SourceError: Two others mean the same.
    """
    try:
        return _meanings(names)
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error


@lru_cache(maxsize=64)
def _meanings(names: tuple[str, ...]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in names:
        meaning = _MEANING.get(name.strip().lower())
        if meaning is None or found.get(meaning) == meaning:
            continue
        if meaning in found and name != meaning:
            raise ValueError(
                f"the columns {found[meaning]!r} and {name!r} both mean the {meaning}; leave one "
                "out"
            )
        found[meaning] = name
    return found


def seconds_from(value: object) -> Decimal:
    """A number of seconds, to the nanosecond.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("it is no number")
    text = str(value).strip()
    if len(text) > _MAX_NUMBER_TEXT:
        raise ValueError("it is too long a number")
    try:
        seconds = Decimal(text)
        if not 0 <= seconds < Decimal(10) ** 9:
            raise ValueError("it is out of range")
        return seconds.quantize(_NANOSECOND)
    except InvalidOperation as error:
        raise ValueError("it is no number") from error


def is_utf8(text: str) -> bool:
    """Whether rows can hold a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _span(row: Mapping[str, object], columns: Mapping[str, str], where: str) -> Span | None:
    bounds = {
        name: row[columns[name]]
        for name in ("start", "stop")
        if name in columns and row[columns[name]] not in (None, "")
    }
    if "span" in columns and (pair := row[columns["span"]]) not in (None, "", []):
        if bounds:
            raise _wrong(where, columns["span"], pair, "either a span, or a start and a stop")
        bounds = _pair(pair, where=where, column=columns["span"])
        columns = {"start": columns["span"], "stop": columns["span"]}
    if not bounds:
        return None
    for name in ("start", "stop"):
        if name not in bounds:
            raise SourceError(
                f"{where}: a stretch has a start and a stop, and the {name} is missing"
            )
    start, stop = (_seconds(bounds[name], where, columns[name]) for name in ("start", "stop"))
    try:
        return Span(start_seconds=start, stop_seconds=stop)
    except ValueError as error:
        raise SourceError(f"{where}, column {columns['stop']!r}: {error}") from error


def _pair(value: object, *, where: str, column: str) -> dict[str, object]:
    parts: Sequence[object] = ()
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, list):
        parts = value
    if len(parts) != 2:
        raise _wrong(where, column, value, "two numbers of seconds, such as 420,430")
    return {"start": parts[0], "stop": parts[1]}


def _seconds(value: object, where: str, column: str) -> Decimal:
    try:
        return seconds_from(value)
    except ValueError as error:
        raise _wrong(where, column, value, "seconds, such as 12.5") from error


def _wrong(where: str, column: str, found: object, wanted: str) -> SourceError:
    return SourceError(f"{where}, column {column!r}: found {repr(found)[:100]}; wanted {wanted}")
