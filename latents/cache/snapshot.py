"""A snapshot: the rows of the log up to a commit, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.rows import RowKind, empty_table, row_schema
from latents.recipe import canonical_json

KINDS: tuple[RowKind, ...] = ("latents", "sources", "quarantine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What the cache held at one commit.

    Beside the columns of their rows, the tables have ``commit``, the number of each row's commit.
    """

    commit: int
    """-1 for an empty cache."""
    latents: pa.Table
    sources: pa.Table
    """The latest row of each URI, in order of URI."""
    quarantine: pa.Table
    """All events, in order of their commits."""

    def rows_of(self, recipe: str) -> pa.Table:
        """Latents rows made by one recipe, in order of clip, each clip once."""
        rows = self.latents.select(row_schema("latents").names)
        rows = rows.filter(pc.equal(rows["recipe"], recipe)).sort_by("clip")
        if rows.num_rows < 2:
            return rows
        clips = rows["clip"].combine_chunks()
        is_new = pc.not_equal(clips[1:], clips[:-1])
        return rows.filter(pa.concat_arrays([pa.array([True]), is_new]))

    def open_quarantine(self) -> list[dict[str, Any]]:
        """The latest event of each source and segment that nothing was committed for since.

        What closes an event is a later latents row; a source that could not even be read has no
        digest, and there it is a later sources row of its URI.
        """
        last_latents = self._last_latents() if self.quarantine.num_rows else {}
        last_source = dict(zip(*_columns(self.sources, "uri", "commit"), strict=True))
        latest: dict[tuple[str, int | None], dict[str, Any]] = {}
        for event in self.quarantine.to_pylist():
            digest, segment = event["source_digest"], event["segment"]
            since = (
                last_latents.get((digest, segment), -1)
                if digest
                else last_source.get(event["source"], -1)
            )
            if since < event["commit"]:
                latest[digest or event["source"], segment] = event
        return sorted(latest.values(), key=lambda event: (event["source"], event["segment"] or 0))

    def _last_latents(self) -> dict[tuple[str, int | None], int]:
        """Latest commit with latents of each (source, segment), and of each (source, None)."""
        last: dict[tuple[str, int | None], int] = {}
        columns = _columns(self.latents, "source", "segment", "commit")
        for source, segment, commit in zip(*columns, strict=True):
            last[source, segment] = last[source, None] = commit
        return last


def load_snapshot(layout: CacheLayout, commit: int | None = None) -> Snapshot:
    """Reads the log up to a commit (default: the latest).

    Raises:
        DamagedError: A commit or a file of rows is missing or not what the log says.
    """
    log = CommitLog(layout)
    last = log.head() if commit is None else commit
    tables = {kind: [_with_commit(empty_table(kind), 0)] for kind in KINDS}
    for entry in log.commits(0, last):
        for file in entry.files:
            tables[file.kind].append(_with_commit(log.read_rows(file), entry.number))
    return Snapshot(
        commit=last,
        latents=pa.concat_tables(tables["latents"]),
        sources=_latest_by_uri(pa.concat_tables(tables["sources"])),
        quarantine=pa.concat_tables(tables["quarantine"]),
    )


def content_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the sorted (clip, field, shape, digest of the tensor) of some rows.

    It is equal for equal latents, whatever the shards, the order, the engine or the time.
    """
    entries = sorted([row["clip"], row["field"], row["shape"], row["digest"]] for row in rows)
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(canonical_json(entry) + b"\n")
    return digest.hexdigest()


def _with_commit(table: pa.Table, number: int) -> pa.Table:
    return table.append_column("commit", pa.array(np.full(table.num_rows, number)))


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _latest_by_uri(table: pa.Table) -> pa.Table:
    position = {uri: index for index, uri in enumerate(table["uri"].to_pylist())}
    return table.take(pa.array(sorted(position.values()), type=pa.int64())).sort_by("uri")
