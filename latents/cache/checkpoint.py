"""Checkpoints: the rows of 256 commits at a time in a few files, so that a log opens quickly.

They are derived: a missing or damaged one is only slow, and is made again from the commits. Each
covers its own 256 commits, so that writing one costs the same however long the log has become.
The columns of latents rows that a plan needs are a small file of their own, the index.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latents.cache.commit import (
    Commit,
    RowFile,
    check_link,
    read_commit,
    read_derived_rows,
    read_rows,
    row_file,
    write_rows,
)
from latents.cache.layout import CacheLayout
from latents.cache.rows import (
    COMMIT_COLUMN,
    ROW_KINDS,
    RowKind,
    row_schema,
    with_commit,
)
from latents.durable import writing_to
from latents.errors import DamagedError
from latents.recipe import open_sealed_json, sealed_json

_log = logging.getLogger(__name__)

COMMITS_PER_CHECKPOINT = 256
READ_THREADS = 8
"""Files read at a time: what waits is the disk or the network."""
INDEX = "index"

_CODE = pa.dictionary(pa.int32(), pa.string())
INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip", _CODE, nullable=False),
        pa.field("field", _CODE, nullable=False),
        pa.field("recipe", _CODE, nullable=False),
        pa.field("source", _CODE, nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("shard", _CODE, nullable=False),
        COMMIT_COLUMN,
    ]
)
"""Columns of latents rows that say which rows there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The rows of the commits ``number - 255`` to ``number``."""

    number: int
    commit: str
    """SHA-256 of its last commit."""
    previous: str | None
    """SHA-256 of the commit before its first."""
    files: Mapping[str, RowFile]
    """By kind of rows, and the ``index``; kinds without rows are absent."""

    @property
    def first(self) -> int:
        """Number of its first commit."""
        return self.number - COMMITS_PER_CHECKPOINT + 1

    def to_json(self) -> bytes:
        """The bytes of its file."""
        return sealed_json(
            {
                "number": self.number,
                "commit": self.commit,
                "previous": self.previous,
                "rows": {kind: file.to_canonical() for kind, file in self.files.items()},
            }
        )


def checkpoint_from_json(content: bytes) -> Checkpoint:
    """Inverse of `Checkpoint.to_json`; raises `ValueError` on anything else."""
    parsed = open_sealed_json(content)
    try:
        checkpoint = Checkpoint(
            number=parsed["number"],
            commit=parsed["commit"],
            previous=parsed["previous"],
            files={kind: row_file(entry) for kind, entry in parsed["rows"].items()},
        )
        is_whole = checkpoint.to_json() == content
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is not a checkpoint ({type(error).__name__}: {error})") from error
    if not is_whole or not set(checkpoint.files) <= {INDEX, *ROW_KINDS}:
        raise ValueError("it is not a checkpoint of this format")
    return checkpoint


def checkpoint_numbers(last: int) -> range:
    """Numbers of the checkpoints of a log whose last commit is ``last``."""
    return range(COMMITS_PER_CHECKPOINT - 1, last + 1, COMMITS_PER_CHECKPOINT)


def schema_of(kind: str) -> pa.Schema:
    """Schema of a checkpoint's rows of a kind: those of commits, with their commit's number."""
    if kind == INDEX:
        return INDEX_SCHEMA
    return row_schema(_row_kind(kind)).append(COMMIT_COLUMN)


def index_of(latents: pa.Table) -> pa.Table:
    """The index of latents rows that have their commit beside them."""
    columns: list[Any] = []
    latents = latents.select(INDEX_SCHEMA.names).combine_chunks()
    for field in INDEX_SCHEMA:
        column = latents[field.name]
        is_code = pa.types.is_dictionary(field.type)
        columns.append(column.dictionary_encode() if is_code else column.cast(field.type))
    return pa.table(columns, schema=INDEX_SCHEMA)


def read_checkpoint(layout: CacheLayout, number: int) -> Checkpoint:
    """A stored checkpoint, without its rows.

    Raises:
        DamagedError: It is missing, or its file is not as it was.
    """
    name = layout.checkpoint(number)
    try:
        checkpoint = checkpoint_from_json(layout.storage.read(name))
    except FileNotFoundError:
        raise DamagedError(name, 0, "the checkpoint is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedError(name, 0, f"the checkpoint cannot be read: {error}") from error
    if checkpoint.number != number:
        raise DamagedError(name, 0, f"says it is checkpoint {checkpoint.number}")
    return checkpoint


def read_checkpoint_rows(layout: CacheLayout, checkpoint: Checkpoint, kind: str) -> pa.Table:
    """A checkpoint's rows of a kind, with their commits; of the commits where it is damaged.

    Raises:
        DamagedError: The commits are damaged too.
    """
    schema = schema_of(kind)
    if kind not in checkpoint.files:
        return schema.empty_table()
    try:
        return read_derived_rows(layout, kind, checkpoint.files[kind], schema)
    except DamagedError as error:
        _log.warning("reading commits instead of a checkpoint: %s", error)
        return _derive(layout, list(_linked_commits(layout, checkpoint.number)), kind)


def usable_checkpoints(layout: CacheLayout, last: int) -> list[Checkpoint]:
    """The checkpoints that stand for the first commits of a log, each linked to the one before.

    The list ends at the first that is missing or damaged: the commits themselves do as well.
    """
    found: list[Checkpoint] = []
    for number in checkpoint_numbers(last):
        try:
            checkpoint = read_checkpoint(layout, number)
        except DamagedError as error:
            _log.info("reading commits instead of a checkpoint: %s", error)
            break
        if checkpoint.previous != (found[-1].commit if found else None):
            break
        found.append(checkpoint)
    return found


def make_checkpoint(layout: CacheLayout, number: int) -> Checkpoint:
    """Writes the checkpoint that ends at a commit; equal commits give equal bytes.

    Raises:
        DamagedError: A commit or its rows are damaged.
        CacheError: The cache cannot be written.
    """
    commits = list(_linked_commits(layout, number))
    tables: dict[str, pa.Table] = {kind: _derive(layout, commits, kind) for kind in ROW_KINDS}
    tables = {INDEX: index_of(tables["latents"]), **tables}
    files = {kind: write_rows(layout, table) for kind, table in tables.items() if table.num_rows}
    checkpoint = Checkpoint(
        number=number, commit=commits[-1].digest, previous=commits[0].previous, files=files
    )
    with writing_to(layout.url):
        layout.storage.replace(layout.checkpoint(number), checkpoint.to_json())
    return checkpoint


def make_missing_checkpoints(layout: CacheLayout, last: int) -> int:
    """Writes those that a killed driver left out; returns how many."""
    missing = [
        number
        for number in checkpoint_numbers(last)
        if not layout.storage.exists(layout.checkpoint(number))
    ]
    for number in missing:
        make_checkpoint(layout, number)
    return len(missing)


def rows_of_commit(layout: CacheLayout, commit: Commit, kind: str) -> pa.Table:
    """A commit's rows of a kind, as a checkpoint holds them; raises `DamagedError`."""
    if kind == INDEX:
        return index_of(rows_of_commit(layout, commit, "latents"))
    row_kind = _row_kind(kind)
    if row_kind not in commit.files:
        return schema_of(kind).empty_table()
    return with_commit(read_rows(layout, row_kind, commit.files[row_kind]), commit.number)


def _derive(layout: CacheLayout, commits: Sequence[Commit], kind: str) -> pa.Table:
    """The rows of a kind that the commits of a checkpoint name."""
    if kind == INDEX:
        return index_of(_derive(layout, commits, "latents"))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return pa.concat_tables(pool.map(lambda one: rows_of_commit(layout, one, kind), commits))


def _row_kind(kind: str) -> RowKind:
    (known,) = (row_kind for row_kind in ROW_KINDS if row_kind == kind)
    return known


def _linked_commits(layout: CacheLayout, number: int) -> Iterator[Commit]:
    """The commits of the checkpoint of that number."""
    before: Commit | None = None
    numbers = range(number - COMMITS_PER_CHECKPOINT + 1, number + 1)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for commit in pool.map(lambda index: read_commit(layout, index), numbers):
            if before is not None:
                check_link(before, commit)
            yield commit
            before = commit
