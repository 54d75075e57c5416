"""A snapshot: the rows of the log up to a commit, less what had left by then."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.checkpoint import (
    INDEX,
    READ_THREADS,
    Checkpoint,
    read_checkpoint_rows,
    rows_of_commit,
    schema_of,
    usable_checkpoints,
)
from latents.cache.commit import Commit
from latents.cache.layout import CacheLayout
from latents.cache.liveness import last_of_each, living, living_sources
from latents.cache.log import CommitLog
from latents.cache.rows import RowKind, row_schema
from latents.errors import DamagedError
from latents.recipe import canonical_json


@dataclass(frozen=True, kw_only=True)  # without slots: what is read later is kept in its dict
class Snapshot:
    """What the cache held at one commit.

    Beside the columns of their rows, the tables have ``commit``, the number of each row's commit.
    The index and the tombstones are at hand. Sources, quarantine and annotations, which training
    does not need, are read when first asked for; that raises `DamagedError` where they are not as
    they were.
    """

    commit: int
    """-1 for an empty cache."""
    index: pa.Table
    """Which latents rows there are; the columns of `latents.cache.checkpoint.INDEX_SCHEMA`."""
    tombstones: pa.Table
    """All of them, in order of their commits."""
    latents_files: tuple[LatentsFile, ...]
    read_all: Callable[[RowKind], pa.Table]
    """From a kind other than latents to all its rows up to the commit, in order of commit."""

    @cached_property
    def sources(self) -> pa.Table:
        """The latest row of each URI that has not left, in order of URI."""
        return living_sources(self.source_history, self.tombstones)

    @cached_property
    def source_history(self) -> pa.Table:
        """All rows of sources, in order of their commits."""
        return self.read_all("sources")

    @cached_property
    def quarantine(self) -> pa.Table:
        """All events, in order of their commits."""
        return self.read_all("quarantine")

    @cached_property
    def annotations(self) -> pa.Table:
        """The latest row of each source."""
        return last_of_each(self.read_all("annotations"), "source")

    def rows_of(self, recipe: str) -> pa.Table:
        """Latents rows made by one recipe, in order of clip, each clip once.

        Reads them from the cache; raises `DamagedError` where they are not as they were.
        """
        is_wanted = pc.equal(self.index["recipe"], recipe)
        commits = np.unique(self.index["commit"].filter(is_wanted).to_numpy())

        def read(file: LatentsFile) -> pa.Table:
            rows = file.read()
            return rows.filter(pc.equal(rows["recipe"], recipe))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            parts = pool.map(read, (one for one in self.latents_files if one.has_any(commits)))
            rows = pa.concat_tables([schema_of("latents").empty_table(), *parts])
        rows = living(rows, self.tombstones)
        rows = last_of_each(rows, "clip").sort_by("clip")
        return rows.select(row_schema("latents").names)

    def open_quarantine(self) -> list[dict[str, Any]]:
        """The latest event of each source and segment that nothing was committed for since.

        What closes an event is a later latents row, or its being dropped; a source that could not
        even be read has no digest, and there it is a later sources row of its URI.
        """
        digests = pc.unique(self.quarantine["source_digest"])
        last_latents = self._last_latents(digests) if len(digests) else {}
        unread = self.quarantine.filter(pc.equal(self.quarantine["source_digest"], ""))
        last_source = self._last_noted(pc.unique(unread["source"])) if unread.num_rows else {}
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
        is_open = [event for event in latest.values() if event["event"] != "dropped"]
        return sorted(is_open, key=lambda event: (event["source"], event["segment"] or 0))

    def _last_latents(self, digests: pa.Array) -> dict[tuple[str, int | None], int]:
        """Latest commit with latents of each (source, segment), and of each (source, None)."""
        rows = self.index.filter(pc.is_in(self.index["source"], value_set=digests))
        last: dict[tuple[str, int | None], int] = {}
        columns = _columns(rows, "source", "segment", "commit")
        for source, segment, commit in zip(*columns, strict=True):
            last[source, segment] = last[source, None] = commit
        return last

    def _last_noted(self, uris: pa.Array) -> dict[str, int]:
        """Commit of the sources row of each URI that has one."""
        rows = self.sources.filter(pc.is_in(self.sources["uri"], value_set=uris))
        return dict(zip(*_columns(rows, "uri", "commit"), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsFile:
    """One stored file of latents rows, of a commit or of a checkpoint."""

    first: int
    last: int
    """Numbers of the commits whose rows it holds."""
    read: Callable[[], pa.Table]
    """Its rows with their commits; raises `DamagedError`."""

    def has_any(self, commits: NDArray[np.int64]) -> bool:
        """Whether it holds rows of one of some commits, in order of number."""
        first, stop = np.searchsorted(commits, [self.first, self.last + 1])
        return bool(first < stop)


def load_snapshot(layout: CacheLayout, commit: int | None = None) -> Snapshot:
    """Reads the log up to a commit (default: the latest).

    Raises:
        DamagedError: A commit or a file of rows is missing or not what the log says.
    """
    log = CommitLog(layout)
    last = log.head() if commit is None else commit
    checkpoints = usable_checkpoints(layout, last)
    commits = _commits_after(layout, log, checkpoints, last)
    read_all = partial(_read_all, layout, checkpoints, commits)
    tombstones = read_all("tombstones")
    return Snapshot(
        commit=last,
        index=living(read_all(INDEX), tombstones),
        tombstones=tombstones,
        latents_files=(
            *(_of_checkpoint(layout, one) for one in checkpoints if "latents" in one.files),
            *(_of_commit(layout, one) for one in commits if "latents" in one.files),
        ),
        read_all=read_all,
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


def _commits_after(
    layout: CacheLayout, log: CommitLog, checkpoints: Sequence[Checkpoint], last: int
) -> list[Commit]:
    """The commits that no checkpoint stands for, linked to the last that one does."""
    if not checkpoints:
        return list(log.commits(0, last))
    number = checkpoints[-1].number
    covered, *later = log.commits(number, last)
    if covered.digest != checkpoints[-1].commit:
        raise DamagedError(
            layout.checkpoint(number),
            0,
            f"is not of the commit {number} that is there; remove it, and it is made again",
        )
    return later


def _read_all(
    layout: CacheLayout, checkpoints: Sequence[Checkpoint], commits: Sequence[Commit], kind: str
) -> pa.Table:
    """All rows of a kind in order of commit; of latents only the index."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        parts = (
            schema_of(kind).empty_table(),
            *pool.map(lambda one: read_checkpoint_rows(layout, one, kind), checkpoints),
            *pool.map(lambda one: rows_of_commit(layout, one, kind), commits),
        )
    return pa.concat_tables(parts)


def _of_checkpoint(layout: CacheLayout, checkpoint: Checkpoint) -> LatentsFile:
    return LatentsFile(
        first=checkpoint.first,
        last=checkpoint.number,
        read=lambda: read_checkpoint_rows(layout, checkpoint, "latents"),
    )


def _of_commit(layout: CacheLayout, commit: Commit) -> LatentsFile:
    return LatentsFile(
        first=commit.number,
        last=commit.number,
        read=lambda: rows_of_commit(layout, commit, "latents"),
    )


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]
