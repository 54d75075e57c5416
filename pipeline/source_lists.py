"""Lists of videos: paths a line (.txt, .lst), JSON a line (.jsonl), .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from latents.errors import SourceError
from pipeline.source_columns import meanings, named_in_row
from pipeline.source_entries import NamedFile
from pipeline.source_urls import beside_url, is_url, open_url, path_of_url, require_protocol

LIST_SUFFIXES = frozenset({".txt", ".lst", ".jsonl", ".csv", ".tsv", ".parquet"})
_ROWS_AT_ONCE = 4096

Locate = Callable[[str], str]
"""From a name in a list to the file's place."""


def read_list(place: str) -> Iterator[NamedFile]:
    """The files that a list at a local path or URL names, read a row at a time.

    Raises:
        SourceError: It cannot be read, names nothing, a row of it is no entry, or names a local
            file that does not exist.
    """
    suffix = PurePosixPath(path_of_url(place) if is_url(place) else place).suffix.lower()
    rows = _READERS[suffix]
    is_empty = True
    try:
        with _opened(place) as file:
            for named, where in rows(file, place, _locate_beside(place)):
                if not is_url(named.place) and not os.path.exists(named.place):
                    raise SourceError(f"{where}: {named.place[:200]} does not exist")
                is_empty = False
                yield named
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        fault = str(error).partition("\n")[0][:300]
        raise SourceError(f"{place[:200]} cannot be read as a list of paths: {fault}") from error
    if is_empty:
        raise SourceError(f"{place} lists no paths")


@contextmanager
def _opened(place: str) -> Iterator[BinaryIO]:
    if is_url(place):
        with open_url(place, seeks=place.endswith(".parquet")) as file:
            yield file
    else:
        with open(place, "rb") as file:
            yield file


def _locate_beside(place: str) -> Locate:
    """Names are relative to their list, unless they are URLs or absolute."""
    folder = None if is_url(place) else Path(place).parent

    def locate(name: str) -> str:
        if is_url(name):
            require_protocol(name)
            return name
        if folder is not None:
            return str(folder / name)
        return name if name.startswith("/") else beside_url(place, name)

    return locate


def _read_paths(file: BinaryIO, place: str, locate: Locate) -> Iterator[tuple[NamedFile, str]]:
    for number, line in _lines(file):
        where = f"{place}, entry {number}"
        yield named_in_row({"file": line}, where=where, locate=locate), where


def _read_jsonl(file: BinaryIO, place: str, locate: Locate) -> Iterator[tuple[NamedFile, str]]:
    for number, line in _lines(file):
        where = f"{place}, entry {number}"
        row = _json_row(line, where)
        yield named_in_row(row, where=where, locate=locate), where


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        name = row[meanings(tuple(row), where)["file"]]
        if not isinstance(name, str):
            raise TypeError("its file is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f'{where}: wanted a JSON object with a "file", got {line[:60]!r}'
        ) from error
    found: dict[str, Any] = row
    return found


def _read_csv(file: BinaryIO, place: str, locate: Locate) -> Iterator[tuple[NamedFile, str]]:
    delimiter = "\t" if path_of_url(place).lower().endswith(".tsv") else ","
    with _text(file, newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(rows, [])]
        for number, cells in enumerate(filter(None, rows), start=1):
            where = f"{place}, row {number} (line {rows.line_num})"
            if len(cells) != len(header):
                raise SourceError(
                    f"{where}: found {len(cells)} cells; wanted {len(header)}, as in the header "
                    f"{', '.join(header)[:200]}"
                )
            row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            yield named_in_row(row, where=where, locate=locate), where


def _read_parquet(file: BinaryIO, place: str, locate: Locate) -> Iterator[tuple[NamedFile, str]]:
    table = pq.ParquetFile(file)
    names = tuple(table.schema_arrow.names)
    wanted = list(meanings(names, place).values()) or list(names)
    number = 0
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
        for row in batch.to_pylist():
            number += 1
            where = f"{place}, row {number}"
            yield named_in_row(row, where=where, locate=locate), where


_READERS = {
    ".txt": _read_paths,
    ".lst": _read_paths,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines that are neither blank nor a comment, counted from 1."""
    number = 0
    with _text(file, newline=None) as lines:
        for line in lines:
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                number += 1
                yield number, stripped


@contextmanager
def _text(file: BinaryIO, *, newline: str | None) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    try:
        yield text
    finally:
        text.detach()  # whoever opened the file closes it
