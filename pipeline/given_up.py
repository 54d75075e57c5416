"""What was given up before: which sources and segments a plan passes over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.rows import QuarantineRow
from latents.cache.snapshot import Snapshot
from pipeline.sources import HashedSource, UnreadableSource

if TYPE_CHECKING:
    from pipeline.job_plan import Wanted

Place = tuple[str, int | None]
"""Digest of a source (its URI where it could not be read) and a segment, None for the whole."""


class GivenUp:
    """The quarantine, as far as it holds under today's settings and versions.

    What an encoder refused is given up only for the same recipes, and what cannot be decoded may
    still be made from the cache. Workers that died and files that were not there are no fault of
    the clip for ever: it is tried again in the next run.
    """

    def __init__(self, snapshot: Snapshot, wanted: Wanted) -> None:
        self._wanted = wanted
        self._rejections: dict[Place, list[Mapping[str, Any]]] = {}
        self._forgotten: dict[Place, str] = {}
        self._retried: dict[str, int] = {}
        for event in snapshot.quarantine.to_pylist():
            self._note(event)
        self._places: dict[str, set[int | None]] = {}
        for name, segment in (*self._rejections, *self._forgotten):
            self._places.setdefault(name, set()).add(segment)

    def _note(self, event: Mapping[str, Any]) -> None:
        name = event["source_digest"] or event["source"]
        place = name, event["segment"]
        if event["event"] == "rejected":
            self._rejections.setdefault(place, []).append(event)
            self._retried.pop(name, None)
        elif event["event"] == "dropped":
            self._forgotten[place] = event["stage"]
        else:
            self._rejections.pop(place, None)
            self._forgotten.pop(place, None)
            self._retried[name] = event["commit"]

    def undecodable(self, source: HashedSource) -> frozenset[int | None]:
        """Segments of a source that decoding gave up; None among them for the whole source."""
        return frozenset(self._given_up(source, "decode"))

    def refused(self, source: HashedSource) -> frozenset[int]:
        """Segments of a source that the encoders gave up."""
        return frozenset(s for s in self._given_up(source, "encode") if s is not None)

    def rejected(self, source: HashedSource) -> list[int | None]:
        """Segments of a source that are given up, and not forgotten; None for the whole source."""
        places = [(source.digest, segment) for segment in self._places.get(source.digest, ())]
        return [p[1] for p in places if p not in self._forgotten and self._stages(p)]

    def is_retried(self, source: HashedSource, *, since: int) -> bool:
        """Whether someone asked after a commit for another attempt at what was given up."""
        return self._retried.get(source.digest, -1) > since

    def unreadable_rows(
        self, sources: Iterable[UnreadableSource], snapshot: Snapshot
    ) -> tuple[QuarantineRow, ...]:
        """Rows of sources that could not be read and are not known as such."""
        found = list(sources)
        uris = pa.array([one.source.uri for one in found], pa.string())
        read = snapshot.sources.filter(pc.is_in(snapshot.sources["uri"], value_set=uris))
        last_read = dict(zip(read["uri"].to_pylist(), read["commit"].to_pylist(), strict=True))
        attempts = attempts_so_far(snapshot) if found else Counter[Place]()
        rows = (_unreadable(one, self._wanted, 1 + attempts[one.source.uri, None]) for one in found)
        return tuple(r for r in rows if not self._is_known(r, since=last_read.get(r.source, -1)))

    def _is_known(self, row: QuarantineRow, *, since: int) -> bool:
        place = row.source, None
        before = self._rejections.get(place, [])
        return place in self._forgotten or any(
            event["message"] == row.message and event["commit"] > since for event in before
        )

    def _given_up(self, source: HashedSource, stage: str) -> Iterator[int | None]:
        for segment in self._places.get(source.digest, ()):
            if stage in self._stages((source.digest, segment)):
                yield segment

    def _stages(self, place: Place) -> set[str]:
        """The stages that gave a place up."""
        events = (event for event in self._rejections.get(place, ()) if self._holds(event))
        forgotten = {self._forgotten[place]} if place in self._forgotten else set()
        return {event["stage"] for event in events} | forgotten

    def _holds(self, event: Mapping[str, Any]) -> bool:
        """Whether a rejection would come again: the same question to the same versions."""
        wanted = self._wanted
        if event["stage"] == "read" or event["error_class"] == "WorkerDiedError":
            return False
        if event["stage"] == "encode":
            asked = combined_digest(wanted.digests.values()), wanted.encode_versions
            return (event["recipe"], event["versions"]) == asked
        asked_then, asked_now = event["recipe"], wanted.admission
        if wanted.keeps_verdicts:
            asked_then, asked_now = asked_then.partition("+")[0], asked_now.partition("+")[0]
        is_same: bool = asked_then == asked_now and event["versions"] == wanted.decode_versions
        return is_same


def attempts_so_far(snapshot: Snapshot) -> Counter[Place]:
    """How often each source and segment has been given up, under whatever versions."""
    rows = snapshot.quarantine.select(["source", "source_digest", "segment", "event"]).to_pylist()
    return Counter(
        (row["source_digest"] or row["source"], row["segment"])
        for row in rows
        if row["event"] == "rejected"
    )


def combined_digest(recipes: Iterable[str]) -> str:
    """One name for a set of recipes."""
    return "+".join(sorted(recipes))


def _unreadable(source: UnreadableSource, wanted: Wanted, attempts: int) -> QuarantineRow:
    return QuarantineRow(
        event="rejected",
        source=source.source.uri,
        source_digest="",
        segment=None,
        stage="read",
        recipe=wanted.admission,
        error_class=source.error_class,
        message=source.reason,
        attempts=attempts,
        versions=wanted.decode_versions,
    )
