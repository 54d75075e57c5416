"""Ingest: videos and scenes to committed latents."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from latents.cache.layout import CacheLayout
from latents.cache.reader import require_recipe
from latents.cache.refs import ancestral_recipes, read_ref, write_recipes
from latents.cache.rows import QuarantineRow
from latents.cache.snapshot import load_snapshot
from latents.fields import Level
from latents.models.kl_vae import EncoderIdentity
from pipeline.job import EncodeJob
from pipeline.plan import Wanted, known_files, plan_ingest, source_row
from pipeline.progress import Tally, show_progress
from pipeline.recipes import (
    admission_digest,
    decode_versions,
    encode_versions,
    segmentation_digest,
    wanted_recipes,
)
from pipeline.run import (
    Engine,
    JobResult,
    encode_quarantine_row,
    move_current,
    open_committer,
    quarantine_row,
    run_tasks,
)
from pipeline.settings import IngestSettings
from pipeline.sources import HashedSource, KnownFile, Source, UnreadableSource, hash_sources
from pipeline.stages import ClipRejected, SourceFinished


def ingest(
    sources: Sequence[Source],
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoder: EncoderIdentity,
    levels: tuple[Level, ...],
    engine: Engine,
    device: str,
) -> JobResult:
    """Videos and scenes to committed latents.

    Sources whose latents are there already are neither decoded nor encoded. ``refs/current``
    moves when all is done.

    Raises:
        StaleFieldError: The cache's current latents were made by other recipes.
        InterruptedJobError: Ctrl-C or SIGTERM; what was finished is committed.
        JobError: Any other fault that is not a source's.
    """
    started = time.monotonic()
    recipes = wanted_recipes(settings, encoder, levels)
    held = ancestral_recipes(layout, read_ref(layout, "current"))
    # Parents too: a level made from other clips must not end up beside these.
    for recipe in recipes.values():
        for part in recipe.with_ancestors():
            require_recipe(layout, part.field, held, part)
    snapshot = load_snapshot(layout)
    wanted = Wanted(
        recipes=frozenset(recipe.digest for recipe in recipes.values()),
        segmentation=segmentation_digest(settings),
        admission=admission_digest(settings),
        decode_versions=decode_versions(),
        encode_versions=encode_versions(),
    )
    hashed = _hash(sources, known_files(snapshot), num_threads=settings.run.num_workers)
    plan = plan_ingest(hashed, snapshot, wanted)
    by_digest: dict[str, list[HashedSource]] = {}
    for one in hashed:
        if isinstance(one, HashedSource):
            by_digest.setdefault(one.digest, []).append(one)
    write_recipes(layout, recipes.values())
    committer = open_committer(layout, recipes, snapshot, settings.run)
    for noted in plan.source_rows:
        committer.add_source(noted)
    for unreadable in plan.quarantine_rows:
        committer.add_quarantine(unreadable)

    def to_quarantine(event: ClipRejected) -> QuarantineRow:
        if event.stage == "encode":
            return encode_quarantine_row(event, recipes)
        return quarantine_row(event, recipe=wanted.admission, versions=wanted.decode_versions)

    def on_finished(event: SourceFinished) -> None:
        for one in by_digest[event.task.digest]:
            committer.add_source(source_row(one, wanted.segmentation, event.num_segments))

    outcome = run_tasks(
        EncodeJob(
            settings=settings,
            levels=levels,
            device=device,
            cache_root=layout.root,
            weights_digest=encoder.weights_digest,
            reads_cached_clips=False,
        ),
        plan.tasks,
        engine=engine,
        committer=committer,
        to_quarantine=to_quarantine,
        on_finished=on_finished,
        unit="sources",
    )
    with_rows = outcome.accepted | set(snapshot.latents["source"].to_pylist())
    return JobResult(
        num_sources=len(sources),
        num_already_present=plan.num_present,
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_quarantined=outcome.tally.num_failures
        + plan.num_quarantined
        + len(plan.quarantine_rows),
        num_sources_with_rows=len(with_rows & by_digest.keys()),
        commit=move_current(layout, recipes),
        seconds=time.monotonic() - started,
    )


def _hash(
    sources: Sequence[Source], known: Mapping[str, KnownFile], *, num_threads: int
) -> list[HashedSource | UnreadableSource]:
    with show_progress("hashed", len(sources)) as report:
        return hash_sources(
            sources,
            known,
            num_threads=num_threads,
            on_hashed=lambda done, total: report(Tally(num_done=done)),
        )
