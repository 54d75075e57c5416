"""A plan as text and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from latents.cache.rows import TombstoneRow
from pipeline.estimate import Estimate
from pipeline.job_plan import FieldPlan
from pipeline.planned_job import PlannedJob


def plan_json(job: PlannedJob, cost: Estimate) -> dict[str, Any]:
    """For machines."""
    plan = job.plan
    return {
        "fields": {
            field: {"recipe": job.wanted.digests[field], **asdict(one)}
            for field, one in plan.fields.items()
        },
        "num_sources": plan.num_sources,
        "num_present": plan.num_present,
        "num_to_decode": len(plan.to_decode),
        "num_from_cache": plan.num_cached_clips,
        "num_quarantined": plan.num_quarantined,
        "num_unreadable": len(plan.quarantine_rows),
        "num_dropped": plan.num_dropped,
        "num_dropped_clips": plan.num_dropped_clips,
        "leaving": [asdict(row) for row in plan.tombstones],
        "estimate": {**asdict(cost), "fits": cost.fits},
    }


def plan_text(job: PlannedJob, cost: Estimate, *, num_workers: int) -> str:
    """For people."""
    plan = job.plan
    lines = [
        f"{plan.num_sources} sources, {plan.num_present} with nothing left to do, "
        f"{plan.num_quarantined} given up before, {plan.num_dropped} taken down"
        + (f", and {plan.num_dropped_clips} clips of others" if plan.num_dropped_clips else "")
    ]
    for field, one in plan.fields.items():
        lines.append(f"{field:17}{one.num_present:8} clips present   {_to_encode(one)}")
        if one.num_leaving:
            lines.append(f"{'':17}{one.num_leaving:8} clips leaving")
        if one.num_quarantined:
            lines.append(f"{'':17}{one.num_quarantined:8} given up before")
    lines.extend(f"leaving  {_named(job, row)} ({row.reason})" for row in plan.tombstones[:10])
    if len(plan.tombstones) > 10:
        lines.append(f"leaving  and {len(plan.tombstones) - 10} more")
    lines.extend(f"unreadable  {row.source}: {row.message}" for row in plan.quarantine_rows[:10])
    lines.extend(_cost(job, cost, num_workers))
    return "\n".join(lines) + "\n"


def _named(job: PlannedJob, row: TombstoneRow) -> str:
    """What leaves, by the name that it had last."""
    if row.uri is not None:
        return row.uri
    history = job.snapshot.source_history
    uris = history.filter(pc.equal(history["digest"], row.source))["uri"].to_pylist()
    return f"{row.source} (was {uris[-1]})" if uris else str(row.source)


def _to_encode(one: FieldPlan) -> str:
    clips = [f"{count} clips: {reason}" for reason, count in _sorted(one.to_encode)]
    sources = [f"{count} sources: {reason}" for reason, count in _sorted(one.num_uncut)]
    return "to encode " + ", ".join((*clips, *sources)) if clips or sources else "nothing to do"


def _sorted(counts: Mapping[Any, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _cost(job: PlannedJob, cost: Estimate, num_workers: int) -> Iterator[str]:
    plan = job.plan
    if not cost.num_clips:
        yield "nothing to encode"
        return
    yield (
        f"{len(plan.to_decode)} sources to decode, {plan.num_cached_clips} clips to make from "
        "levels that the cache keeps"
    )
    seconds = cost.encode_seconds
    time = (
        "no clip of this kind has been timed here yet"
        if seconds is None
        else f"about {seconds / num_workers:.0f} s of encoding with {num_workers} workers"
    )
    room = "" if cost.free_bytes is None else f" of {cost.free_bytes / 1e9:.1f} GB free"
    yield f"about {cost.num_clips} clips, {cost.num_bytes / 1e9:.3f} GB{room}; {time}"
    if not cost.fits:
        yield (
            f"NOT ENOUGH ROOM: {shlex.quote(job.layout.url)} is "
            f"{(cost.num_bytes - (cost.free_bytes or 0)) / 1e9:.1f} GB short"
        )
