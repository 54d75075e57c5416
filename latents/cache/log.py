"""The commit log: a hash chain of JSON files, each created exclusively. Creating one is the commit.

Of several drivers that race for number n exactly one creates the file; the losers read what
was committed meanwhile, drop rows that are already there or may not be there any more, and try
n + 1. What no commit names does not exist.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.checkpoint import checkpoint_numbers, make_checkpoint
from latents.cache.commit import Commit, check_link, read_commit, read_rows, write_rows
from latents.cache.layout import CacheLayout
from latents.cache.rows import RowKind, TombstoneReason
from latents.durable import reading_from, writing_to
from latents.errors import CacheError

_log = logging.getLogger(__name__)

READ_THREADS = 8
"""Commits read at a time: what waits is the disk or the network."""
_COMMITS_AT_A_TIME = 1024
"""Commits asked for ahead: what a number far beyond the log costs before it is refused."""
_COMMIT_NAME = re.compile(r"commits/[0-9]{12}\.json")


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
        self._later = _LaterRows()

    def numbers(self) -> list[int]:
        """Numbers of the commits whose files are there, ascending; raises as `head`."""
        with reading_from(self._layout.url):
            names = [file.name for file in self._layout.storage.list("commits")]
        return sorted(int(name[-17:-5]) for name in names if _COMMIT_NAME.fullmatch(name))

    def head(self) -> int:
        """Number of the latest commit; -1 where there is none.

        Raises:
            CacheError: The disk or the network does not answer.
        """
        if self._seen < 0:
            return max(self.numbers(), default=-1)
        # Whoever knows a commit need not list them all.
        head = self._seen
        with reading_from(self._layout.url):
            while self._layout.storage.exists(self._layout.commit(head + 1)):
                head += 1
        return head

    def commits(self, first: int, last: int) -> Iterator[Commit]:
        """Commits first..last, both inclusive; each must name the one before it.

        Raises:
            DamagedError: One is missing, damaged, or not linked to the one before.
        """
        before: Commit | None = None
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for start in range(first, last + 1, _COMMITS_AT_A_TIME):
                numbers = range(start, min(start + _COMMITS_AT_A_TIME, last + 1))
                for commit in pool.map(lambda number: read_commit(self._layout, number), numbers):
                    if commit.number == 0 or before is not None:
                        check_link(before, commit)
                    yield commit
                    before = commit

    def append(self, tables: Mapping[RowKind, pa.Table], run: Mapping[str, str]) -> Commit | None:
        """Commits rows; returns None where another driver had committed all of them already.

        A tombstone ``moved`` is left out, with the rows that it moves, where it would end others
        that came since ``seen``; ``changed`` and ``pruned``, where a source row that came since
        names what would leave.

        Raises:
            CacheError: The cache cannot be written.
            DamagedError: A commit that came in between cannot be read.
        """
        while True:
            head = self.head()
            latest = self._catch_up(head)
            admitted = self._later.admit(tables)
            files = {
                kind: write_rows(self._layout, table)
                for kind, table in sorted(admitted.items())
                if table.num_rows
            }
            if not files:
                return None
            previous = latest.digest if latest else None
            commit = Commit(number=head + 1, previous=previous, files=files, run=run)
            with writing_to(self._layout.url):
                name = self._layout.commit(commit.number)
                is_ours = self._layout.storage.create(name, commit.to_json())
            if is_ours:
                self._make_checkpoint_if_due(commit.number)
                return commit

    def _make_checkpoint_if_due(self, number: int) -> None:
        if number not in checkpoint_numbers(number):
            return
        try:
            make_checkpoint(self._layout, number)
        except CacheError as error:
            # The commit stands, and the next driver makes what is missing.
            _log.warning("the checkpoint of commit %d was not written: %s", number, error)

    def _catch_up(self, head: int) -> Commit | None:
        """Notes what all commits up to one brought, our own among them; returns that one."""
        latest: Commit | None = None
        for latest in self.commits(max(self._seen, 0), head):
            if latest.number > self._seen:
                self._later.note(
                    {
                        kind: read_rows(self._layout, kind, latest.files[kind])
                        for kind in ("tombstones", "latents", "sources")
                        if kind in latest.files
                    }
                )
                self._seen = latest.number
        return latest


class _Tensor(NamedTuple):
    """A latents row, as far as two commits can disagree about it."""

    source: str
    clip: str
    recipe: str
    shard: str
    digest: str

    @property
    def identity(self) -> tuple[str, str, str]:
        """What may exist only once."""
        return self[:3]

    @property
    def names(self) -> tuple[str, str, str, str]:
        """What a tombstone may call it by."""
        return self[:4]


class _LaterRows:
    """What commits since a snapshot hold and ended."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str, str], _Tensor] = {}
        self._gone: set[str] = set()
        """Names that may not come back by themselves."""
        self._on_record: set[str] = set()
        """URIs and digests of sources that were put on record."""

    def note(self, tables: Mapping[RowKind, pa.Table]) -> None:
        """Takes the rows of the next commit."""
        ended, brought = _named_by_tombstones(tables), _tensors(tables)
        if ended.names:
            living = (one for one in self._taken.values() if ended.names.isdisjoint(one.names))
            self._taken = {one.identity: one for one in living}
        self._taken.update((one.identity, one) for one in brought)
        if "sources" in tables:
            self._on_record.update(tables["sources"]["uri"].to_pylist())
            self._on_record.update(tables["sources"]["digest"].to_pylist())
        self._gone |= ended.gone
        self._gone -= ended.readmitted | {name for one in brought for name in one.names}

    def admit(self, tables: Mapping[RowKind, pa.Table]) -> dict[RowKind, pa.Table]:
        """The rows that may still be committed.

        What left meanwhile stays out: whoever removed it had the last word. What these rows end
        themselves may come anew with them.
        """
        ended, pending = _named_by_tombstones(tables), _tensors(tables)
        gone = self._gone - ended.readmitted
        overtaken = self._overtaken(ended.moved, pending)
        stays_out, comes_anew = gone | overtaken, ended.names - overtaken
        is_admitted = [
            stays_out.isdisjoint(one.names)
            and (
                one.identity not in self._taken
                or not comes_anew.isdisjoint(self._taken[one.identity].names)
            )
            for one in pending
        ]
        admitted = dict(tables)
        if "latents" in tables:
            admitted["latents"] = tables["latents"].filter(pa.array(is_admitted, pa.bool_()))
        if "sources" in tables:
            admitted["sources"] = _without(tables["sources"], "digest", gone)
        if "tombstones" in tables:
            tombstones = _without_moves(tables["tombstones"], overtaken)
            admitted["tombstones"] = _without_returned(tombstones, self._on_record)
        return admitted

    def _overtaken(self, moved: Set[str], pending: Collection[_Tensor]) -> Set[str]:
        """What can be moved no more: tensors that came meanwhile would not come along."""
        if not moved:
            return moved
        brought = {(one.identity, one.digest) for one in pending}
        return moved & {
            name
            for one in self._taken.values()
            if (one.identity, one.digest) not in brought
            for name in one.names
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ended:
    """What tombstones name: digests of sources and recipes, clips and shards, never alike."""

    names: frozenset[str]
    """Of all that ends."""
    gone: frozenset[str]
    """Of what left by somebody's word."""
    moved: frozenset[str]
    readmitted: frozenset[str]


def _named_by_tombstones(tables: Mapping[RowKind, pa.Table]) -> _Ended:
    named: dict[TombstoneReason, set[str]] = {one: set() for one in get_args(TombstoneReason)}
    if "tombstones" in tables:
        reasons = tables["tombstones"]["reason"].to_pylist()
        for column in _names(tables["tombstones"]):
            for reason, name in zip(reasons, column.to_pylist(), strict=True):
                if name is not None:
                    named[reason].add(name)
    gone = frozenset(named["changed"] | named["pruned"] | named["dropped"])
    return _Ended(
        names=gone | named["moved"] | named["unreached"],
        gone=gone,
        moved=frozenset(named["moved"]),
        readmitted=frozenset(named["readmitted"]),
    )


def _names(tombstones: pa.Table) -> tuple[pa.ChunkedArray, ...]:
    """Columns of what they name: a clip or else its whole source, a recipe, a shard."""
    clips = pc.coalesce(tombstones["clip"], tombstones["source"])
    return clips, tombstones["recipe"], tombstones["shard"]


def _tensors(tables: Mapping[RowKind, pa.Table]) -> list[_Tensor]:
    if "latents" not in tables:
        return []
    columns = [tables["latents"][name].to_pylist() for name in _Tensor._fields]
    return list(map(_Tensor, *columns))


def _without(table: pa.Table, column: str, values: Collection[str]) -> pa.Table:
    """The rows whose column has none of these values."""
    return table.filter(pc.invert(pc.is_in(table[column], value_set=_strings(values))))


def _without_moves(tombstones: pa.Table, overtaken: Collection[str]) -> pa.Table:
    """The tombstones that move none of these."""
    is_move = pc.equal(tombstones["reason"], "moved")
    names = [pc.is_in(column, value_set=_strings(overtaken)) for column in _names(tombstones)]
    return tombstones.filter(pc.invert(pc.and_(is_move, reduce(pc.or_, names))))


def _without_returned(tombstones: pa.Table, on_record: Collection[str]) -> pa.Table:
    """The tombstones that say of none of these sources that it is gone."""
    is_gone = pc.and_(
        pc.is_in(tombstones["reason"], value_set=pa.array(["changed", "pruned"])),
        pc.is_null(tombstones["clip"]),
    )
    named = pc.coalesce(tombstones["uri"], tombstones["source"])
    returned = pc.is_in(named, value_set=_strings(on_record))
    return tombstones.filter(pc.invert(pc.and_(is_gone, returned)))


def _strings(values: Collection[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())
