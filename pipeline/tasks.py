"""A plan's tasks, made one at a time: a cached clip's rows are 5 KB, and there can be millions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.reader import CachedClip, ClipRows
from latents.cache.snapshot import Snapshot
from pipeline.job import CachedClipTask, Task
from pipeline.job_plan import CachedWork, JobPlan, Wanted


class Tasks(Sequence[Task]):
    """Sources to decode, then clips to make from the cache.

    Args:
        plan: What is left to do.
        snapshot: Where the clips' rows are.
        wanted: What the plan was made for.
    """

    def __init__(self, plan: JobPlan, snapshot: Snapshot, wanted: Wanted) -> None:
        self._to_decode = plan.to_decode
        self._cached = [_rows_of(work, snapshot, wanted) for work in plan.cached]

    def __len__(self) -> int:
        return len(self._to_decode) + sum(len(work.rows) for work in self._cached)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        position = range(len(self))[index]
        if position < len(self._to_decode):
            return self._to_decode[position]
        position -= len(self._to_decode)
        for work in self._cached:
            if position < len(work.rows):
                return work.task(position)
            position -= len(work.rows)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Task]:
        yield from self._to_decode
        for work in self._cached:
            yield from work.tasks()


@dataclass(frozen=True, slots=True)
class _CachedRows:
    """Clips of one kind of work, with the rows to read."""

    rows: ClipRows
    uris: pa.Array
    make: tuple[str, ...]

    def task(self, position: int) -> CachedClipTask:
        (task,) = self._of(self.rows[position : position + 1], position)
        return task

    def tasks(self) -> Iterator[CachedClipTask]:
        return self._of(self.rows, 0)

    def _of(self, clips: Sequence[CachedClip], first: int) -> Iterator[CachedClipTask]:
        for position, clip in enumerate(clips, start=first):
            source = next(iter(clip.rows.values())).source
            uri = self.uris[position].as_py()
            yield CachedClipTask(uri=uri or source, digest=source, clip=clip, fields=self.make)


def _rows_of(work: CachedWork, snapshot: Snapshot, wanted: Wanted) -> _CachedRows:
    clips = pa.array(work.clips, pa.string())
    tables = {}
    for field in work.read:
        rows = snapshot.rows_of(wanted.usable[field])
        tables[field] = rows.filter(pc.is_in(rows["clip"], value_set=clips))
    rows = ClipRows(tables)
    sources = tables[work.read[0]]["source"]
    record = snapshot.sources
    found = pc.index_in(sources, value_set=record["digest"].combine_chunks())
    uris = record["uri"].take(found).combine_chunks()
    return _CachedRows(rows=rows, uris=uris, make=work.make)
