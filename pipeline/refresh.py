"""Refresh: latents anew from a cached level, beside the old ones, without opening a source."""

from __future__ import annotations

import time
from collections.abc import Mapping

from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.refs import write_recipes
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import Recipe
from pipeline.job import CachedClipTask, EncodeJob
from pipeline.plan import combined_digest
from pipeline.recipes import encode_versions, kl_recipes
from pipeline.run import (
    Engine,
    JobResult,
    encode_quarantine_row,
    move_current,
    open_committer,
    run_tasks,
)
from pipeline.settings import IngestSettings


def refresh_kl(
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoder: EncoderIdentity,
    engine: Engine,
    device: str,
) -> JobResult:
    """The ``kl`` level anew from the ``clip`` level, beside the old one; no video is opened.

    Raises:
        CacheError: The cache keeps no clip level.
    """
    started = time.monotonic()
    recipes = kl_recipes(settings, encoder)
    parents = {parent.field: parent for recipe in recipes.values() for parent in recipe.parents}
    pinned = open_cache(layout.root, level="clip", recipes=parents)
    # Of the log's head: an interrupted ingest may have committed clips beyond the ref.
    snapshot = load_snapshot(layout)
    clips = CachedLevel(layout, snapshot, level="clip", recipes=pinned.recipes)
    made = [set(snapshot.rows_of(recipe.digest)["clip"].to_pylist()) for recipe in recipes.values()]
    present = set.intersection(*made)
    refused = _refused(snapshot, recipes)
    uris = {row["digest"]: row["uri"] for row in snapshot.sources.to_pylist()}
    tasks = tuple(
        CachedClipTask(uri=uris.get(row.source, row.source), digest=row.source, clip=clip)
        for clip in clips
        for row in [clip.rows["clip.video"]]
        if clip.clip not in present and (row.source, row.segment) not in refused
    )
    write_recipes(layout, recipes.values())
    outcome = run_tasks(
        EncodeJob(
            settings=settings,
            levels=("kl",),
            device=device,
            cache_root=layout.root,
            weights_digest=encoder.weights_digest,
            reads_cached_clips=True,
        ),
        tasks,
        engine=engine,
        committer=open_committer(layout, recipes, snapshot, settings.run),
        to_quarantine=lambda event: encode_quarantine_row(event, recipes),
        unit="clips",
    )
    num_present = len(clips) - len(tasks) - len(refused)
    return JobResult(
        num_sources=len(clips),
        num_already_present=num_present,
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_quarantined=outcome.tally.num_failures + len(refused),
        num_sources_with_rows=num_present + outcome.tally.num_clips,
        commit=move_current(layout, recipes),
        seconds=time.monotonic() - started,
    )


def _refused(snapshot: Snapshot, recipes: Mapping[str, Recipe]) -> set[tuple[str, int]]:
    """Source and segment of the clips that this encoder refused before."""
    wanted = combined_digest(recipe.digest for recipe in recipes.values())
    return {
        (event["source_digest"], event["segment"])
        for event in snapshot.open_quarantine()
        if (event["recipe"], event["versions"]) == (wanted, encode_versions())
    }
