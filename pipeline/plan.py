"""The plan: which sources must be decoded, and which of their segments. A pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from latents.cache.rows import QuarantineRow, SourceRow
from latents.cache.snapshot import Snapshot
from pipeline.decode import SourceTask
from pipeline.sources import HashedSource, KnownFile, UnreadableSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an ingest is to make, as digests."""

    recipes: frozenset[str]
    """Recipe of each field."""
    segmentation: str
    admission: str
    decode_versions: str
    encode_versions: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestPlan:
    """What is left to do."""

    tasks: tuple[SourceTask, ...]
    """Sources to decode; each content once."""
    source_rows: tuple[SourceRow, ...]
    """Sources whose content is in the cache under another name or time; only noted."""
    quarantine_rows: tuple[QuarantineRow, ...]
    """Sources whose bytes cannot be read."""
    num_present: int
    """Sources for which nothing is left to do."""
    num_quarantined: int
    """Sources and segments given up before, under these settings and versions."""


def known_files(snapshot: Snapshot) -> dict[str, KnownFile]:
    """Size, time and digest of every source on record, by URI."""
    return {
        row["uri"]: KnownFile(size=row["size"], mtime_ns=row["mtime_ns"], digest=row["digest"])
        for row in snapshot.sources.to_pylist()
    }


def plan_ingest(
    sources: Iterable[HashedSource | UnreadableSource], snapshot: Snapshot, wanted: Wanted
) -> IngestPlan:
    """Compares what is wanted with what a snapshot holds."""
    done = _segments_done(snapshot, wanted.recipes)
    given_up = _segments_given_up(snapshot, wanted)
    lengths = _lengths(snapshot, wanted.segmentation)
    on_record = {
        (row["uri"], row["digest"], row["size"], row["mtime_ns"])
        for row in snapshot.sources.to_pylist()
    }
    tasks: dict[str, SourceTask] = {}
    source_rows: list[SourceRow] = []
    quarantine_rows: list[QuarantineRow] = []
    num_present = num_quarantined = 0
    for hashed in sources:
        if isinstance(hashed, UnreadableSource):
            quarantine_rows.append(_unreadable(hashed, wanted))
            continue
        digest = hashed.digest
        rejected = given_up.get(digest, frozenset())
        skip = done.get(digest, frozenset[int | None]()) | rejected
        length = lengths.get(digest)
        is_over = None in skip or (length is not None and skip.issuperset(range(length)))
        num_quarantined += len(rejected)
        if is_over:
            num_present += None not in skip
            if (hashed.source.uri, digest, hashed.size, hashed.mtime_ns) not in on_record:
                source_rows.append(source_row(hashed, wanted.segmentation, length or 0))
        elif digest not in tasks:
            tasks[digest] = source_task(hashed, {s for s in skip if s is not None})
    return IngestPlan(
        tasks=tuple(tasks.values()),
        source_rows=tuple(source_rows),
        quarantine_rows=tuple(quarantine_rows),
        num_present=num_present,
        num_quarantined=num_quarantined,
    )


def source_row(hashed: HashedSource, segmentation: str, num_segments: int) -> SourceRow:
    """The record of a source whose length is known."""
    return SourceRow(
        uri=hashed.source.uri,
        size=hashed.size,
        mtime_ns=hashed.mtime_ns,
        digest=hashed.digest,
        segmentation=segmentation,
        num_segments=num_segments,
    )


def source_task(hashed: HashedSource, skip: Set[int]) -> SourceTask:
    """The task of decoding a source, less some of its segments."""
    source = hashed.source
    return SourceTask(
        uri=source.uri,
        path=None if source.path is None else str(source.path),
        scene=source.scene,
        digest=hashed.digest,
        size=hashed.size,
        mtime_ns=hashed.mtime_ns,
        skip_segments=frozenset(skip),
    )


def _segments_done(
    snapshot: Snapshot, recipes: frozenset[str]
) -> Mapping[str, frozenset[int | None]]:
    """By source digest: segments that have a row of every wanted recipe."""
    latents = snapshot.latents
    made: dict[tuple[str, int], set[str]] = {}
    columns = (latents[name].to_pylist() for name in ("source", "segment", "recipe"))
    for source, segment, recipe in zip(*columns, strict=True):
        made.setdefault((source, segment), set()).add(recipe)
    done: dict[str, set[int | None]] = {}
    for (source, segment), found in made.items():
        if recipes <= found:
            done.setdefault(source, set()).add(segment)
    return {source: frozenset(segments) for source, segments in done.items()}


def _segments_given_up(snapshot: Snapshot, wanted: Wanted) -> Mapping[str, frozenset[int | None]]:
    """By source digest: segments quarantined under the same settings and decoder versions.

    What an encoder refused is given up only for the same recipes. Workers that died are no fault
    of the clip for ever: it is tried again in the next run.
    """
    given_up: dict[str, set[int | None]] = {}
    reasons = (
        (wanted.admission, wanted.decode_versions),
        (combined_digest(wanted.recipes), wanted.encode_versions),
    )
    for event in snapshot.quarantine.to_pylist():
        is_same = (event["recipe"], event["versions"]) in reasons
        if is_same and event["error_class"] != "WorkerDiedError":
            given_up.setdefault(event["source_digest"], set()).add(event["segment"])
    return {source: frozenset(segments) for source, segments in given_up.items()}


def combined_digest(recipes: Iterable[str]) -> str:
    """One name for a set of recipes."""
    return "+".join(sorted(recipes))


def _lengths(snapshot: Snapshot, segmentation: str) -> Mapping[str, int]:
    """Number of segments of each source digest that was cut to the end.

    A source that gave none is as if it had never been cut: other settings may find some.
    """
    return {
        row["digest"]: row["num_segments"]
        for row in snapshot.sources.to_pylist()
        if row["segmentation"] == segmentation and row["num_segments"] > 0
    }


def _unreadable(source: UnreadableSource, wanted: Wanted) -> QuarantineRow:
    return QuarantineRow(
        source=source.source.uri,
        source_digest="",
        segment=None,
        stage="read",
        recipe=wanted.admission,
        error_class="DecodeError",
        message=source.reason,
        versions=wanted.decode_versions,
    )
