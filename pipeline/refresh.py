"""Refresh: latents anew by other encoders or settings, beside the old ones, with the least work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout
from latents.cache.refs import read_ref
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.fields import Level
from pipeline.decode import SoundPolicy
from pipeline.ingest import hash_with_progress, known_files, wanted_for
from pipeline.planned_job import PlannedJob, carry_out, plan_for
from pipeline.recipes import Encoders, wanted_recipes
from pipeline.run import Engine, JobResult
from pipeline.settings import IngestSettings
from pipeline.sources import HashedSource, Source, part_of, source_of_uri


def refresh(
    sources: Sequence[Source] | None,
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoders: Encoders,
    levels: tuple[Level, ...],
    engine: Engine,
    device: str,
    part: tuple[int, int] | None = None,
) -> JobResult:
    """The wanted levels, from whatever the cache holds that they can be made from.

    A new modal encoder reads the ``kl`` level, a new KL-VAE or mel the ``clip`` level; a video is
    opened only where neither will do. The old latents stay, and training on them goes on;
    ``refs/current`` moves when all is done, and ``refs/previous`` keeps what it was.

    Args:
        sources: What to refresh; None for all sources on record, whose files are not looked at.
        layout: The cache.
        settings: What is made, and how the work is done.
        encoders: Identities of the encoders.
        levels: The levels to make.
        engine: Who works.
        device: Where the encoders run.
        part: Part i of n of the sources; ``refs/current`` stays.

    Raises:
        InterruptedJobError: Ctrl-C or SIGTERM; what was finished is committed.
        JobError: Any other fault that is not a source's.
    """
    started = time.monotonic()
    with driving(layout, purpose="refresh"):
        job = plan_refresh(
            sources,
            layout=layout,
            settings=settings,
            encoders=encoders,
            levels=levels,
            part=part,
        )
        return carry_out(job, engine=engine, device=device, purpose="refresh", started=started)


def plan_refresh(
    sources: Sequence[Source] | None,
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoders: Encoders,
    levels: tuple[Level, ...],
    prune: bool = False,
    part: tuple[int, int] | None = None,
) -> PlannedJob:
    """What `refresh` would do, or `ingest` of these sources."""
    current = read_ref(layout, "current")
    snapshot = load_snapshot(layout)
    wanted = wanted_for(settings, wanted_recipes(settings, encoders, levels))
    if sources is None:
        recorded = recorded_sources(snapshot, part=part)
        return plan_for(
            recorded,
            layout=layout,
            settings=settings,
            encoders=encoders,
            wanted=replace(wanted, keeps_verdicts=settings.sound == SoundPolicy()),
            snapshot=snapshot,
            prune=False,
            is_part=part is not None,
            planned_current=current,
            may_replace=True,
        )
    chosen = part_of(sources, part=part[0], num_parts=part[1]) if part else sources
    known = known_files(snapshot, chosen)
    return plan_for(
        hash_with_progress(chosen, known, settings=settings, rehash=False),
        layout=layout,
        settings=settings,
        encoders=encoders,
        wanted=wanted,
        snapshot=snapshot,
        prune=prune,
        is_part=part is not None,
        planned_current=current,
        may_replace=True,
    )


def recorded_sources(
    snapshot: Snapshot, *, part: tuple[int, int] | None = None
) -> list[HashedSource]:
    """The sources on record, as they were when they were last seen."""
    columns = ["uri", "size", "mtime_ns", "etag", "digest"]
    found = [
        HashedSource(
            source=source_of_uri(row["uri"]),
            size=row["size"],
            mtime_ns=row["mtime_ns"],
            etag=row["etag"],
            digest=row["digest"],
        )
        for row in snapshot.sources.select(columns).to_pylist()
    ]
    if part is None:
        return found
    chosen = {s.uri for s in part_of([f.source for f in found], part=part[0], num_parts=part[1])}
    return [source for source in found if source.source.uri in chosen]
