"""Verification of the log: its commits, the rows they name, and the checkpoints made of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.checkpoint import COMMITS_PER_CHECKPOINT, INDEX_SCHEMA, index_of, schema_of
from latents.cache.commit import Commit, check_link, read_commit, read_rows
from latents.cache.damage import Damage, damage_of
from latents.cache.layout import CacheLayout
from latents.cache.liveness import living
from latents.cache.log import READ_THREADS
from latents.cache.rows import ROW_KINDS, RowKind, empty_table, with_commit
from latents.cache.verify_rows import verify_rows
from latents.errors import DamagedError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadCommit:
    """What could be read of one commit."""

    number: int
    commit: Commit | None
    """None where its file is damaged."""
    tables: Mapping[RowKind, pa.Table]
    """Its rows with its number beside them, less those in damaged files."""
    damaged: tuple[Damage, ...]

    def lacks(self, kind: RowKind) -> bool:
        """Whether it may have rows of a kind that could not be read."""
        return self.commit is None or (kind in self.commit.files and kind not in self.tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitBlock:
    """What could be read of the commits that one checkpoint stands for."""

    checkpoint: int
    commits: Sequence[ReadCommit]
    """Those whose files are there."""
    is_whole: bool
    """All are there, each is whole and names the one before it."""

    def rows(self, kind: RowKind) -> pa.Table:
        """The rows of a kind with their commits, as a checkpoint holds them."""
        tables = [one.tables[kind] for one in self.commits if kind in one.tables]
        return pa.concat_tables([with_commit(empty_table(kind), 0), *tables]).cast(schema_of(kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedLog:
    """What could be read of a log."""

    end: int
    """Number of its last commit, readable or not; -1 where there is none."""
    commits: Mapping[int, Commit]
    unread: Mapping[RowKind, Sequence[int]]
    """By kind the commits that may have rows which could not be read; of a gap the two ends."""
    index: pa.Table
    """Of all latents rows, dead or alive; the columns of `INDEX_SCHEMA`."""
    tombstones: pa.Table

    def living(self, commit: int) -> pa.Table:
        """The index of the latents rows that were alive at a commit.

        Those are left out that tombstones which could not be read may have ended.
        """
        rows, tombstones = (
            table.filter(pc.less_equal(table["commit"], commit))
            for table in (self.index, self.tombstones)
        )
        unread = max((one for one in self.unread["tombstones"] if one <= commit), default=-1)
        return living(rows.filter(pc.greater_equal(rows["commit"], unread)), tombstones)

    def shards(self) -> dict[str, list[int]]:
        """By shard the commits whose rows lie in it, in the order they were written."""
        pairs = self.index.group_by(["commit", "shard"], use_threads=False).aggregate([])
        named: dict[str, list[int]] = {}
        columns = (pairs["commit"].to_pylist(), pairs["shard"].to_pylist())
        for commit, shard in sorted(zip(*columns, strict=True)):
            named.setdefault(shard, []).append(commit)
        return named


def verify_log(
    layout: CacheLayout,
    numbers: Sequence[int],
    *,
    on_block: Callable[[CommitBlock], None],
    damaged: list[Damage],
) -> VerifiedLog:
    """Reads the whole log, 256 commits at a time.

    Args:
        layout: The cache.
        numbers: Of the commits whose files are there, ascending.
        on_block: Called with each block of commits, which is forgotten after it.
        damaged: Takes the faults.
    """
    chain = _Chain(layout)
    commits: dict[int, Commit] = {}
    index, tombstones = [INDEX_SCHEMA.empty_table()], [schema_of("tombstones").empty_table()]
    for block in _blocks(layout, numbers, chain, damaged):
        commits |= {one.number: one.commit for one in block.commits if one.commit is not None}
        index.append(index_of(block.rows("latents")))
        tombstones.append(block.rows("tombstones"))
        on_block(block)
    return VerifiedLog(
        end=max([chain.wanted - 1, *commits]),
        commits=commits,
        unread=chain.unread,
        index=pa.concat_tables(index).unify_dictionaries(),
        tombstones=pa.concat_tables(tombstones),
    )


def _blocks(
    layout: CacheLayout, numbers: Sequence[int], chain: _Chain, damaged: list[Damage]
) -> Iterator[CommitBlock]:
    pool = ThreadPoolExecutor(READ_THREADS)
    try:
        for block, members in groupby(numbers, key=lambda n: n // COMMITS_PER_CHECKPOINT):
            commits = list(pool.map(partial(_read_commit, layout), members))
            num_whole = 0
            for one in commits:
                faults = list(chain.follow(one))
                num_whole += not faults and not any(map(one.lacks, ROW_KINDS))
                damaged.extend((*one.damaged, *faults))
            yield CommitBlock(
                checkpoint=(block + 1) * COMMITS_PER_CHECKPOINT - 1,
                commits=commits,
                is_whole=num_whole == COMMITS_PER_CHECKPOINT,
            )
    finally:
        pool.shutdown(cancel_futures=True)


def _read_commit(layout: CacheLayout, number: int) -> ReadCommit:
    try:
        commit = read_commit(layout, number)
    except DamagedError as error:
        return ReadCommit(number=number, commit=None, tables={}, damaged=(damage_of(error),))
    tables: dict[RowKind, pa.Table] = {}
    damaged: list[Damage] = []
    for kind, file in commit.files.items():
        try:
            rows = read_rows(layout, kind, file)
        except DamagedError as error:
            damaged.append(damage_of(error))
            continue
        damaged.extend(verify_rows(kind, rows, path=layout.rows(file.sha256)))
        tables[kind] = with_commit(rows, number)
    return ReadCommit(number=number, commit=commit, tables=tables, damaged=tuple(damaged))


class _Chain:
    """Follows commits in order, and notes where one is missing or not linked to the last."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._before: Commit | None = None
        self.wanted = 0
        """The first commit that was not met yet."""
        self.unread: dict[RowKind, list[int]] = {kind: [] for kind in ROW_KINDS}

    def follow(self, read: ReadCommit) -> Iterator[Damage]:
        """What is wrong between this commit and those before it."""
        commit, number = read.commit, read.number
        is_next = number == self.wanted
        if commit is None and not is_next:
            # Beyond a gap, a damaged file may be another commit's under a wrong name.
            return
        for kind, unread in self.unread.items():
            unread.extend([] if is_next else [self.wanted, number - 1])
            unread.extend([number] if read.lacks(kind) else [])
        if not is_next:
            path = self._layout.commit(self.wanted)  # the first of a gap stands for all of it
            yield Damage(path=path, problem="the commit is missing from the log")
        elif commit is not None and (number == 0 or self._before is not None):
            try:
                check_link(self._before, commit)
            except DamagedError as error:
                yield damage_of(error)
        self._before, self.wanted = commit, number + 1
