"""One commit of the log and the files of rows that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from latents.cache.layout import CacheLayout
from latents.cache.rows import (
    ROW_KINDS,
    RowKind,
    check_rows,
    read_parquet,
    table_from_bytes,
    table_to_bytes,
)
from latents.durable import reason, writing_to
from latents.errors import DamagedError
from latents.recipe import Canonical, is_sha256_hex, open_sealed_json, sealed_json, sha256_hex


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFile:
    """A file of rows, as a commit or checkpoint names it."""

    sha256: str
    num_rows: int

    def to_canonical(self) -> dict[str, Canonical]:
        """Its place in the JSON of whoever names it."""
        return {"sha256": self.sha256, "num_rows": self.num_rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One entry of the log."""

    number: int
    previous: str | None
    """SHA-256 of the commit before it; None for the first."""
    files: Mapping[RowKind, RowFile]
    run: Mapping[str, str]
    """Which run made it, for the record."""

    def to_json(self) -> bytes:
        """The bytes of its file."""
        return sealed_json(
            {
                "number": self.number,
                "previous": self.previous,
                "rows": {kind: file.to_canonical() for kind, file in self.files.items()},
                "run": dict(self.run),
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of its file, which the next commit names."""
        return sha256_hex(self.to_json())


def commit_from_json(content: bytes) -> Commit:
    """Inverse of `Commit.to_json`; raises `ValueError` on anything else."""
    parsed = open_sealed_json(content)
    try:
        commit = Commit(
            number=parsed["number"],
            previous=parsed["previous"],
            files={kind: row_file(entry) for kind, entry in sorted(parsed["rows"].items())},
            run=parsed["run"],
        )
        is_whole = (
            type(commit.number) is int
            and (commit.previous is None or is_sha256_hex(commit.previous))
            and all(isinstance(said, str) for said in commit.run.values())
            and commit.to_json() == content
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is not a commit ({type(error).__name__}: {error})") from error
    if not is_whole or not set(commit.files) <= set(ROW_KINDS):
        raise ValueError("it is not a commit of this format")
    return commit


def row_file(entry: Mapping[str, object]) -> RowFile:
    """Inverse of `RowFile.to_canonical`; raises `ValueError` on anything else."""
    sha256, num_rows = entry["sha256"], entry["num_rows"]
    if not isinstance(sha256, str) or not is_sha256_hex(sha256) or type(num_rows) is not int:
        raise ValueError("a file of rows is named by its SHA-256 and number of rows")
    return RowFile(sha256=sha256, num_rows=num_rows)


def check_link(before: Commit | None, commit: Commit) -> None:
    """Raises `DamagedError` where a commit does not name the one before it (None: it is first)."""
    if commit.previous != (before.digest if before else None):
        raise DamagedError(
            f"commits/{commit.number:012d}.json",
            0,
            f"the commit it follows is not the {commit.number - 1} that is there",
        )


def read_commit(layout: CacheLayout, number: int) -> Commit:
    """One commit; raises `DamagedError` where the file is missing or is not a commit."""
    name = layout.commit(number)
    try:
        commit = commit_from_json(layout.storage.read(name))
    except FileNotFoundError:
        raise DamagedError(name, 0, "the commit is missing from the log") from None
    except OSError as error:
        raise DamagedError(name, 0, f"the commit cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise DamagedError(name, 0, f"the commit cannot be read: {error}") from error
    if commit.number != number:
        raise DamagedError(name, 0, f"says it is commit {commit.number}")
    return commit


def read_rows(layout: CacheLayout, kind: RowKind, file: RowFile) -> pa.Table:
    """The rows that a commit names, after comparing the file with its name.

    Raises:
        DamagedError: The file is missing, or its content is not what the commit names.
    """
    name = layout.rows(file.sha256)
    content = _read_named(layout, name, file, kind)
    try:
        table = table_from_bytes(kind, content)
    except ValueError as error:
        raise DamagedError(name, 0, f"{kind} rows: {error}") from error
    return _of_length(table, name, file)


def read_derived_rows(layout: CacheLayout, kind: str, file: RowFile, schema: pa.Schema) -> pa.Table:
    """The rows that a checkpoint names; raises as `read_rows`."""
    name = layout.rows(file.sha256)
    content = _read_named(layout, name, file, kind)
    try:
        table = read_parquet(content, schema)
        check_rows(kind, table)
    except ValueError as error:
        raise DamagedError(name, 0, f"{kind} rows: {error}") from error
    return _of_length(table, name, file)


def write_rows(layout: CacheLayout, table: pa.Table) -> RowFile:
    """Stores rows under the name of their content.

    Raises:
        CacheError: The cache cannot be written.
    """
    content = table_to_bytes(table)
    digest = sha256_hex(content)
    with writing_to(layout.url):
        layout.storage.replace(layout.rows(digest), content)
    return RowFile(sha256=digest, num_rows=table.num_rows)


def _read_named(layout: CacheLayout, name: str, file: RowFile, kind: str) -> bytes:
    try:
        content = layout.storage.read(name)
    except FileNotFoundError:
        raise DamagedError(name, 0, f"{file.num_rows} {kind} rows are missing") from None
    except OSError as error:
        raise DamagedError(name, 0, f"{kind} rows cannot be read ({reason(error)})") from error
    if sha256_hex(content) != file.sha256:
        raise DamagedError(name, 0, f"{kind} rows do not hash to the file's name")
    return content


def _of_length(table: pa.Table, name: str, file: RowFile) -> pa.Table:
    if table.num_rows != file.num_rows:
        raise DamagedError(name, 0, f"holds {table.num_rows} rows, not {file.num_rows}")
    return table
