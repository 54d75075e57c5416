"""The commit log: a hash chain of JSON files, each created exclusively. Creating one is the commit.

Of several drivers that race for number n exactly one creates the file; the losers read what
was committed meanwhile, drop rows that are already there, and try n + 1. What no commit names
does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.rows import ROW_TYPES, RowKind, table_from_bytes, table_to_bytes
from latents.durable import create_file, replace_file, writing_to
from latents.errors import DamagedError
from latents.recipe import is_sha256_hex, open_sealed_json, sealed_json, sha256_hex

_COMMIT_NAME = re.compile(r"[0-9]{12}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFile:
    """A file of rows that a commit names."""

    kind: RowKind
    sha256: str
    num_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One entry of the log."""

    number: int
    previous: str | None
    """SHA-256 of the commit before it; None for the first."""
    files: tuple[RowFile, ...]
    run: Mapping[str, str]
    """Which run made it, for the record."""

    def to_json(self) -> bytes:
        """The bytes of its file."""
        return sealed_json(
            {
                "number": self.number,
                "previous": self.previous,
                "rows": {
                    file.kind: {"sha256": file.sha256, "num_rows": file.num_rows}
                    for file in self.files
                },
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
            files=tuple(
                RowFile(kind=kind, sha256=entry["sha256"], num_rows=entry["num_rows"])
                for kind, entry in sorted(parsed["rows"].items())
            ),
            run=parsed["run"],
        )
        is_whole = commit.to_json() == content
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is not a commit ({type(error).__name__}: {error})") from error
    if not is_whole or not all(
        file.kind in ROW_TYPES and is_sha256_hex(file.sha256) for file in commit.files
    ):
        raise ValueError("it is not a commit of this format")
    return commit


def check_link(before: Commit | None, commit: Commit) -> None:
    """Raises `DamagedError` where a commit does not name the one before it (None: it is first)."""
    if commit.previous != (before.digest if before else None):
        raise DamagedError(
            f"commits/{commit.number:012d}.json",
            0,
            f"the commit it follows is not the {commit.number - 1} that is there",
        )


class CommitLog:
    """The log of one cache.

    Args:
        layout: The cache.
        seen: A commit whose rows the caller knows and does not append again (a snapshot's). What
            later commits hold is dropped from what is appended; by default that is the whole log.
    """

    def __init__(self, layout: CacheLayout, *, seen: int = -1) -> None:
        self._layout = layout
        self._seen = seen
        self._taken: set[str] = set()

    def numbers(self) -> list[int]:
        """Numbers of the commits whose files are there, ascending."""
        names = (path.name for path in (self._layout.root / "commits").glob("*.json"))
        return sorted(int(name[:12]) for name in names if _COMMIT_NAME.fullmatch(name))

    def head(self) -> int:
        """Number of the latest commit; -1 where there is none."""
        return max(self.numbers(), default=-1)

    def read(self, number: int) -> Commit:
        """One commit; raises `DamagedError` where the file is missing or is not a commit."""
        path = self._layout.commit(number)
        name = f"commits/{path.name}"
        try:
            commit = commit_from_json(path.read_bytes())
        except FileNotFoundError:
            raise DamagedError(name, 0, "the commit is missing from the log") from None
        except (OSError, ValueError) as error:
            raise DamagedError(name, 0, f"the commit cannot be read: {error}") from error
        if commit.number != number:
            raise DamagedError(name, 0, f"says it is commit {commit.number}")
        return commit

    def commits(self, first: int, last: int) -> Iterator[Commit]:
        """Commits first..last, both inclusive; each must name the one before it."""
        before: Commit | None = None
        for number in range(first, last + 1):
            commit = self.read(number)
            if number == 0 or before is not None:
                check_link(before, commit)
            yield commit
            before = commit

    def read_rows(self, file: RowFile) -> pa.Table:
        """The rows of a file, after comparing the file with its name.

        Raises:
            DamagedError: The file is missing, or its content is not what the commit names.
        """
        path = self._layout.rows(file.sha256)
        name = f"rows/{path.name}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DamagedError(name, 0, f"{file.num_rows} {file.kind} rows are missing") from None
        except OSError as error:
            raise DamagedError(name, 0, f"{file.kind} rows cannot be read: {error}") from error
        if sha256_hex(content) != file.sha256:
            raise DamagedError(name, 0, f"{file.kind} rows do not hash to the file's name")
        try:
            table = table_from_bytes(file.kind, content)
        except ValueError as error:
            raise DamagedError(name, 0, str(error)) from error
        if table.num_rows != file.num_rows:
            raise DamagedError(name, 0, f"holds {table.num_rows} rows, not {file.num_rows}")
        return table

    def append(self, tables: Mapping[RowKind, pa.Table], run: Mapping[str, str]) -> Commit | None:
        """Commits rows; returns None where another driver had committed all of them already.

        Raises:
            CacheError: The cache cannot be written.
            DamagedError: A commit that came in between cannot be read.
        """
        pending = dict(tables)
        while True:
            head = self.head()
            self._catch_up(head)
            if "latents" in pending:
                pending["latents"] = self._not_taken(pending["latents"])
            files = tuple(
                self._write_rows(kind, table)
                for kind, table in sorted(pending.items())
                if table.num_rows
            )
            if not files:
                return None
            previous = self.read(head).digest if head >= 0 else None
            commit = Commit(number=head + 1, previous=previous, files=files, run=run)
            with writing_to(self._layout.root):
                is_ours = create_file(self._layout.commit(commit.number), commit.to_json())
            if is_ours:
                return commit

    def _write_rows(self, kind: RowKind, table: pa.Table) -> RowFile:
        content = table_to_bytes(table)
        digest = sha256_hex(content)
        with writing_to(self._layout.root):
            replace_file(self._layout.rows(digest), content)
        return RowFile(kind=kind, sha256=digest, num_rows=table.num_rows)

    def _catch_up(self, head: int) -> None:
        """Notes the latents of all commits up to one, our own among them."""
        for commit in self.commits(self._seen + 1, head):
            for file in commit.files:
                if file.kind == "latents":
                    self._taken.update(latent_identity(self.read_rows(file)))
            self._seen = commit.number

    def _not_taken(self, latents: pa.Table) -> pa.Table:
        """My rows less those that a commit since ``seen`` holds."""
        is_new = [key not in self._taken for key in latent_identity(latents)]
        return latents.filter(pa.array(is_new, type=pa.bool_()))


def latent_identity(table: pa.Table) -> list[str]:
    """``recipe/clip`` of each latents row: what may exist only once."""
    keys: list[str] = pc.binary_join_element_wise(table["recipe"], table["clip"], "/").to_pylist()
    return keys
