"""What people say to clips and sources that were given up: try them again, or forget them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow.compute as pc

from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.rows import QuarantineEvent, QuarantineRow, rows_to_table
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.cache.source_names import digest_of, unknown_name, uris_of
from latents.errors import CacheError

Event = dict[str, Any]
"""A quarantine row with the number of its ``commit``."""

_COLUMNS = tuple(column.name for column in fields(QuarantineRow))


def retry(
    layout: CacheLayout,
    names: Sequence[str] | None,
    *,
    reasons: Collection[str] = (),
    run: Mapping[str, str],
) -> list[Event]:
    """Has the next ingest or refresh try again what was given up; returns what that is.

    Args:
        layout: The cache.
        names: Of each source its URI, a path to its file, or a digest or the beginning of one;
            what was dropped comes back by its name. None: all that is open.
        reasons: Only events of these error classes, for example ``DecodeTimeoutError``; by
            default of any.
        run: Recorded with the commit.

    Raises:
        CacheError: A name or reason is of nothing that is in quarantine; nothing was done then.
    """
    with driving(layout, purpose="quarantine retry"):
        snapshot = load_snapshot(layout)
        waiting = [event for event in snapshot.open_quarantine() if event["event"] == "rejected"]
        if names is None:
            chosen = waiting
        else:
            chosen = _named(layout, snapshot, names, among=[*waiting, *_forgotten(snapshot)])
        found = sorted({event["error_class"] for event in chosen})
        if unknown := sorted(set(reasons) - set(found)):
            raise CacheError(
                f"{layout.url}: nothing was given up for {', '.join(unknown)}; the reasons are "
                f"{', '.join(found) or 'none'}"
            )
        chosen = [event for event in chosen if not reasons or event["error_class"] in reasons]
        _append(layout, snapshot, "retried", chosen, run)
        return chosen


def drop(layout: CacheLayout, names: Sequence[str], *, run: Mapping[str, str]) -> list[Event]:
    """Forgets what was given up: it is neither listed nor tried any more; returns what that was.

    Args:
        layout: The cache.
        names: As for `retry`.
        run: Recorded with the commit.

    Raises:
        CacheError: A name is of nothing that is in quarantine; nothing was done then.
    """
    with driving(layout, purpose="quarantine drop"):
        snapshot = load_snapshot(layout)
        chosen = _named(layout, snapshot, names, among=snapshot.open_quarantine())
        _append(layout, snapshot, "dropped", chosen, run)
        return chosen


def show(layout: CacheLayout, name: str) -> list[Event]:
    """All that ever happened to a source in quarantine, in order.

    Raises:
        CacheError: Nothing ever did.
    """
    snapshot = load_snapshot(layout)
    return _named(layout, snapshot, [name], among=snapshot.quarantine.to_pylist())


def _forgotten(snapshot: Snapshot) -> list[Event]:
    """The latest event of each source and segment, where that is its being dropped."""
    latest: dict[tuple[str, int | None], Event] = {}
    for event in snapshot.quarantine.to_pylist():
        latest[event["source_digest"] or event["source"], event["segment"]] = event
    return [event for event in latest.values() if event["event"] == "dropped"]


def _named(
    layout: CacheLayout, snapshot: Snapshot, names: Sequence[str], *, among: Iterable[Event]
) -> list[Event]:
    """The events of some sources, each once, in their order."""
    events = list(among)
    digests = pc.unique(snapshot.quarantine["source_digest"])
    wanted: set[str] = set()
    for name in names:
        keys = {*uris_of(name), digest_of(name, digests)}
        found = {
            key
            for event in events
            for key in (event["source"], event["source_digest"])
            if key in keys
        }
        if not found:
            known = snapshot.quarantine["source"].to_pylist()
            if not keys.isdisjoint([*known, *digests.to_pylist()]):
                raise CacheError(
                    f"{layout.url}: {name} is in quarantine no more; "
                    f"`mmldm cache quarantine show {name} --cache {layout.url}` says what happened"
                )
            raise unknown_name(f"{layout.url}, quarantine", name, dict.fromkeys(known))
        wanted |= found
    return [
        event
        for event in events
        if not wanted.isdisjoint((event["source"], event["source_digest"]))
    ]


def _append(
    layout: CacheLayout,
    snapshot: Snapshot,
    kind: QuarantineEvent,
    events: Sequence[Event],
    run: Mapping[str, str],
) -> None:
    if events:
        rows = [
            QuarantineRow(**{name: event[name] for name in _COLUMNS} | {"event": kind})
            for event in events
        ]
        table = rows_to_table("quarantine", rows)
        CommitLog(layout, seen=snapshot.commit).append({"quarantine": table}, run)
