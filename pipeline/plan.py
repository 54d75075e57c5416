"""The plan: what must be made of which source, from what, and why; and what leaves. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latents.cache.liveness import last_of_each
from latents.cache.removal import dropped_clips, dropped_digests
from latents.cache.rows import SourceRow
from latents.cache.snapshot import Snapshot
from latents.clip import ClipKey, ClipSpec
from latents.fields import FIELDS, to_compute
from pipeline.decode import SourceTask
from pipeline.field_counts import FieldCounts
from pipeline.given_up import GivenUp
from pipeline.holdings import Holdings
from pipeline.job_plan import CachedWork, JobPlan, Reason, Wanted
from pipeline.leaving import leaving_sources
from pipeline.reasons import Reasons
from pipeline.source_rows import annotation_rows, source_row, source_task
from pipeline.sources import HashedSource, UnreadableSource


def plan_job(
    sources: Sequence[HashedSource | UnreadableSource],
    snapshot: Snapshot,
    wanted: Wanted,
    *,
    reason_for: Callable[[str, str], Reason],
    prune: bool = False,
) -> JobPlan:
    """Compares what is wanted with what a snapshot holds.

    Args:
        sources: Those asked for.
        snapshot: The head's.
        wanted: What is to be made.
        reason_for: From a field and the digest of a recipe that it was made by before to why it
            is made anew.
        prune: Sources on record that were not asked for leave.
    """
    readable = [source for source in sources if isinstance(source, HashedSource)]
    unreadable = [source for source in sources if isinstance(source, UnreadableSource)]
    planner = _Planner(snapshot, wanted, reason_for)
    dropped = dropped_digests(snapshot)
    admitted = [source for source in readable if source.digest not in dropped]
    for source in planner.split(admitted):
        planner.plan_source(source)
    quarantine_rows = planner.given_up.unreadable_rows(unreadable, snapshot)
    tombstones, leaving = leaving_sources(
        snapshot, readable, {source.source.uri for source in unreadable}, prune=prune
    )
    num_unreadable_before = len(unreadable) - len(quarantine_rows)
    return JobPlan(
        to_decode=tuple(planner.to_decode.values()),
        cached=planner.cached_work(),
        in_two_parts=frozenset(planner.in_two_parts),
        fields=planner.counts.plans(leaving, num_unreadable=num_unreadable_before),
        source_rows=tuple(planner.source_rows),
        annotation_rows=annotation_rows(readable, snapshot),
        quarantine_rows=quarantine_rows,
        tombstones=tombstones,
        num_sources=len(sources),
        num_present=planner.num_present,
        num_quarantined=planner.num_quarantined + num_unreadable_before,
        num_dropped=len(readable) - len(admitted),
        num_dropped_clips=_num_dropped_clips(snapshot, admitted),
    )


class _Planner:
    """The state of one plan while sources are gone through."""

    def __init__(
        self, snapshot: Snapshot, wanted: Wanted, reason_for: Callable[[str, str], Reason]
    ) -> None:
        self._snapshot, self._wanted, self._reason_for = snapshot, wanted, reason_for
        self.counts = FieldCounts(wanted)
        self._held = Holdings(snapshot.index, wanted.digests)
        self._usable = Holdings(snapshot.index, wanted.usable)
        self._dropped = _dropped_segments(snapshot, wanted.clip)
        self.given_up = GivenUp(snapshot, wanted)
        self.to_decode: dict[str, SourceTask] = {}
        self.in_two_parts: set[str] = set()
        self.source_rows: list[SourceRow] = []
        self.num_present = self.num_quarantined = 0
        self._cached: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        self._planned: set[str] = set()

    def split(self, sources: Sequence[HashedSource]) -> list[HashedSource]:
        """The sources with something left to do; the others are counted and noted."""
        digests = pa.array([source.digest for source in sources], pa.string())
        self._positions = self._held.positions(digests)
        self._lengths = self._lengths_of(digests)
        usable = self._usable.positions(digests)
        num_full = self._held.num_full()[self._positions]
        is_done = (self._lengths > 0) & (num_full >= self._lengths)
        is_noted = self._compare_with_record(sources)
        left: list[HashedSource] = []
        self._of_digest: dict[str, _Known] = {}
        for number, source in enumerate(sources):
            length = int(self._lengths[number])
            if not is_done[number]:
                left.append(source)
                self._of_digest[source.digest] = _Known(
                    held=self._held.segments(int(self._positions[number])),
                    usable=self._usable.segments(int(usable[number])),
                    length=length,
                )
                continue
            self.num_present += 1
            if not is_noted[number]:
                self.source_rows.append(source_row(source, self._wanted.segmentation, length))
        unique_full = np.unique(self._positions[is_done], return_index=True)[1]
        self.counts.add_whole(int(num_full[is_done][unique_full].sum()))
        self._reasons = Reasons(
            self._snapshot,
            self._wanted,
            given_up=self.given_up,
            sources=left,
            changed=self._changed,
            reason_for=self._reason_for,
        )
        return left

    def plan_source(self, source: HashedSource) -> None:
        """Plans a source of which something may be missing."""
        known, undecodable = self._of_digest[source.digest], self.given_up.undecodable(source)
        is_hopeless = None in undecodable
        if (known.length or is_hopeless) and source.source.uri not in self._noted:
            row = source_row(source, self._wanted.segmentation, known.length)
            self.source_rows.append(row)
        if source.digest in self._planned:
            return
        self._planned.add(source.digest)
        self.counts.add_held(known.held.values())
        over = self._over(source, known)
        planned, from_source = self._plan_segments(source, known, over, undecodable)
        self._count_given_up(source, known, planned)
        is_uncut = not known.length and not is_hopeless
        if from_source or is_uncut:
            decoded = {field for make in from_source.values() for field in make}
            without = set(range(known.length)) - from_source.keys()
            self.to_decode[source.digest] = source_task(
                source,
                skip_segments=frozenset(over | without | {s for s in undecodable if s is not None}),
                fields=tuple(f for f in self._wanted.recipes if f in decoded or is_uncut),
            )
        if planned or is_uncut:
            made = {field for make in planned.values() for field in make}
            fields = self._wanted.recipes if is_uncut else made
            reasons = {field: self._reasons.why(source, field) for field in fields}
            self.counts.add_planned(reasons, planned.values())
        elif not is_hopeless:
            self.num_present += 1

    def _count_given_up(
        self, source: HashedSource, known: _Known, planned: Mapping[int, tuple[str, ...]]
    ) -> None:
        """Counts what is given up of a source, and for each field what lacks it for that."""
        rejected = self.given_up.rejected(source)
        self.num_quarantined += len(rejected)
        for segment in rejected:
            # Of a whole source, no field is held.
            has = (
                () if segment is None else (*known.held.get(segment, ()), *planned.get(segment, ()))
            )
            self.counts.add_given_up(self._wanted.recipes.keys() - set(has))

    def _over(self, source: HashedSource, known: _Known) -> set[int]:
        """Segments of a source of which nothing is to be made, whatever from."""
        num_fields = len(self._wanted.recipes)
        full = {segment for segment, fields in known.held.items() if len(fields) == num_fields}
        dropped = self._dropped.get(_clip_prefix(source.digest), set())
        return full | self.given_up.refused(source) | dropped

    def _plan_segments(
        self,
        source: HashedSource,
        known: _Known,
        over: Set[int],
        undecodable: Set[int | None],
    ) -> tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]]:
        """Fields to make of each segment of a source, and those of them from the source."""
        from_cache: dict[int, tuple[str, ...]] = {}
        from_source: dict[int, tuple[str, ...]] = {}
        for segment in set(range(known.length)) - over:
            held, usable = (kept.get(segment, frozenset()) for kept in (known.held, known.usable))
            make = tuple(field for field in self._wanted.recipes if field not in held)
            cached, rest = _by_origin(make, usable)
            if cached:
                from_cache[segment] = cached
            if rest and undecodable.isdisjoint((None, segment)):
                from_source[segment] = rest
        # Every segment that is decoded gets the fields that any of them lacks.
        decoded = {field for make in from_source.values() for field in make}
        for segment, cached in from_cache.items():
            is_decoded = segment in from_source
            if make := tuple(f for f in cached if not (is_decoded and f in decoded)):
                self._add_cached(source.digest, segment, make, known.usable[segment])
                if is_decoded:
                    self.in_two_parts.add(self._clip(source.digest, segment))
        planned = {
            segment: from_cache.get(segment, ()) + from_source.get(segment, ())
            for segment in from_cache.keys() | from_source.keys()
        }
        return planned, from_source

    def cached_work(self) -> tuple[CachedWork, ...]:
        """Clips to make from the cache, by what is read and made."""
        return tuple(
            CachedWork(read=read, make=make, clips=tuple(sorted(clips)))
            for (read, make), clips in sorted(self._cached.items())
        )

    def _lengths_of(self, digests: pa.Array) -> NDArray[np.int64]:
        """Segments of each source that was ever cut to the end; 0 where that is not known.

        The record of a name has only its last cut: another frame rate comes and goes.
        """
        rows = self._snapshot.source_history
        is_cut = pc.and_(
            pc.equal(rows["segmentation"], self._wanted.segmentation),
            pc.greater(rows["num_segments"], 0),
        )
        rows = last_of_each(rows.filter(is_cut), "digest")
        found = pc.index_in(digests, value_set=_whole(rows["digest"]))
        lengths = np.append(rows["num_segments"].to_numpy(), 0)
        places = pc.fill_null(found, len(lengths) - 1).to_numpy(False)
        of_sources: NDArray[np.int64] = lengths[places]
        return of_sources

    def _compare_with_record(self, sources: Sequence[HashedSource]) -> NDArray[np.bool_]:
        """Whether the record of each source says what it is like now; notes changed contents."""
        rows = self._snapshot.sources
        uris = [source.source.uri for source in sources]
        found = pc.index_in(pa.array(uris, pa.string()), value_set=_whole(rows["uri"]))
        record = rows.take(found)
        is_same = pc.equal(record["digest"], pa.array([s.digest for s in sources], pa.string()))
        is_changed = pc.fill_null(pc.invert(is_same), False).to_pylist()
        self._changed = {uri for uri, changed in zip(uris, is_changed, strict=True) if changed}
        for name in ("size", "mtime_ns"):
            now = pa.array([getattr(source, name) for source in sources], pa.int64())
            is_same = pc.and_(is_same, pc.equal(record[name], now))
        etags = pa.array([source.etag for source in sources], pa.string())
        is_same = pc.and_(is_same, pc.equal(record["etag"], etags))
        is_noted: NDArray[np.bool_] = _whole(pc.fill_null(is_same, False)).to_numpy(False)
        self._noted = {uri for uri, noted in zip(uris, is_noted, strict=True) if noted}
        return is_noted

    def _add_cached(
        self, digest: str, segment: int, make: tuple[str, ...], usable: frozenset[str]
    ) -> None:
        clips = self._cached.setdefault((_to_read(make, usable), make), [])
        clips.append(self._clip(digest, segment))

    def _clip(self, digest: str, segment: int) -> str:
        clip = self._wanted.clip
        start = segment * clip.segment_frames
        return str(ClipKey(source_digest=digest, start_frame=start, fps=clip.fps))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the cache knows of a source."""

    held: Mapping[int, frozenset[str]]
    """Wanted fields of each segment."""
    usable: Mapping[int, frozenset[str]]
    """Fields of each segment that the wanted ones may be made from."""
    length: int
    """Segments; 0 where it was never cut to the end."""


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


@cache
def _by_origin(
    make: tuple[str, ...], usable: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of some fields, those that can be made from what is usable, and those that cannot."""
    roots = {
        field: {f for f in to_compute((field,), usable) if not FIELDS[f].parents} for field in make
    }
    return tuple(f for f in make if not roots[f]), tuple(f for f in make if roots[f])


@cache
def _to_read(make: tuple[str, ...], usable: frozenset[str]) -> tuple[str, ...]:
    """The fields that others are made from, in order."""
    computed = to_compute(make, usable)
    parents = {parent for field in computed for parent in FIELDS[field].parents}
    return tuple(field for field in FIELDS if field in parents - set(computed))


def _dropped_segments(snapshot: Snapshot, clip: ClipSpec) -> dict[str, set[int]]:
    """Segments that were taken down, by what the keys of a source's clips begin with.

    Cut otherwise, these are all segments that overlap the clip that was taken down. Where it ended
    in what may be the tail of the segment before, that segment too.
    """
    segments: dict[str, set[int]] = {}
    for key, stop in dropped_clips(snapshot).items():
        prefix, start, fps = key.split("-")
        first_frame = int(start) * clip.fps // int(fps)
        stop_frame = max(-(-stop * clip.fps // int(fps)), first_frame + 1)
        first = first_frame // clip.segment_frames
        if first and stop_frame <= first * clip.segment_frames + clip.tail_frames:
            first -= 1
        covered = range(first, -(-stop_frame // clip.segment_frames))
        segments.setdefault(prefix, set()).update(covered)
    return segments


def _num_dropped_clips(snapshot: Snapshot, sources: Sequence[HashedSource]) -> int:
    """Clips of some sources that were taken down one by one."""
    asked = {_clip_prefix(source.digest) for source in sources}
    return sum(key.split("-")[0] in asked for key in dropped_clips(snapshot))


def _clip_prefix(digest: str) -> str:
    return str(ClipKey(source_digest=digest, start_frame=0, fps=1)).split("-")[0]
