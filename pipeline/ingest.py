"""Ingest: videos and scenes to committed latents."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout
from latents.cache.reader import require_recipe
from latents.cache.refs import ancestral_recipes, read_ref
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.fields import Level
from latents.recipe import Recipe
from pipeline.job_plan import Wanted
from pipeline.planned_job import PlannedJob, carry_out, plan_for
from pipeline.progress import Tally, show_progress
from pipeline.recipes import (
    Encoders,
    admission_digest,
    decode_versions,
    encode_versions,
    segmentation_digest,
    wanted_recipes,
)
from pipeline.run import Engine, JobResult
from pipeline.settings import IngestSettings
from pipeline.source_hashing import hash_sources
from pipeline.sources import HashedSource, KnownFile, Source, UnreadableSource


def ingest(
    sources: Sequence[Source],
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoders: Encoders,
    levels: tuple[Level, ...],
    engine: Engine,
    device: str,
    prune: bool = False,
    rehash: bool = False,
    is_part: bool = False,
) -> JobResult:
    """Videos and scenes to committed latents.

    Sources whose latents are there already are neither decoded nor encoded; the clips of a source
    whose bytes changed leave. ``refs/current`` moves when all is done.

    Args:
        sources: What to ingest.
        layout: The cache.
        settings: What is made, and how the work is done.
        encoders: Identities of the encoders that the settings name.
        levels: The levels to make.
        engine: Who works.
        device: Where the encoders run.
        prune: Sources on record that are not among these leave.
        rehash: Reads every file, though neither its size nor its time changed.
        is_part: These are some of the sources only; ``refs/current`` stays.

    Raises:
        StaleFieldError: The cache's current latents were made by other recipes.
        InterruptedJobError: Ctrl-C or SIGTERM; what was finished is committed.
        JobError: Any other fault that is not a source's.
    """
    started = time.monotonic()
    with driving(layout, purpose="ingest"):
        job = plan_ingest(
            sources,
            layout=layout,
            settings=settings,
            encoders=encoders,
            levels=levels,
            prune=prune,
            rehash=rehash,
            is_part=is_part,
        )
        return carry_out(job, engine=engine, device=device, purpose="ingest", started=started)


def plan_ingest(
    sources: Sequence[Source],
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoders: Encoders,
    levels: tuple[Level, ...],
    prune: bool = False,
    rehash: bool = False,
    is_part: bool = False,
) -> PlannedJob:
    """What `ingest` would do; raises `StaleFieldError` as it does."""
    recipes = wanted_recipes(settings, encoders, levels)
    current = read_ref(layout, "current")
    held = ancestral_recipes(layout, current)
    # Parents too: a level made from other clips must not end up beside these.
    for recipe in recipes.values():
        for part in recipe.with_ancestors():
            require_recipe(layout, part.field, held, part)
    snapshot = load_snapshot(layout)
    known = known_files(snapshot, sources)
    hashed = hash_with_progress(sources, known, settings=settings, rehash=rehash)
    return plan_for(
        hashed,
        layout=layout,
        settings=settings,
        encoders=encoders,
        wanted=wanted_for(settings, recipes),
        snapshot=snapshot,
        prune=prune,
        is_part=is_part,
        planned_current=current,
        may_replace=False,
    )


def wanted_for(settings: IngestSettings, recipes: Mapping[str, Recipe]) -> Wanted:
    """What a run under these settings is to make."""
    return Wanted(
        recipes=recipes,
        clip=settings.clip,
        segmentation=segmentation_digest(settings),
        admission=admission_digest(settings),
        decode_versions=decode_versions(),
        encode_versions=encode_versions(),
    )


def known_files(snapshot: Snapshot, sources: Sequence[Source]) -> dict[str, KnownFile]:
    """What the log says of the files of sources that are on record, by URI."""
    uris = pa.array([source.uri for source in sources], pa.string())
    rows = snapshot.sources.filter(pc.is_in(snapshot.sources["uri"], value_set=uris))
    columns = ["uri", "size", "mtime_ns", "etag", "digest"]
    return {row.pop("uri"): KnownFile(**row) for row in rows.select(columns).to_pylist()}


def hash_with_progress(
    sources: Sequence[Source],
    known: Mapping[str, KnownFile],
    *,
    settings: IngestSettings,
    rehash: bool,
) -> list[HashedSource | UnreadableSource]:
    """Digests of all sources, with progress."""
    with show_progress("hashed", len(sources)) as report:
        return hash_sources(
            sources,
            known,
            num_threads=settings.run.num_workers,
            rehash=rehash,
            on_hashed=lambda done, total: report(Tally(num_done=done)),
        )
