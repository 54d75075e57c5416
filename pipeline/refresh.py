"""Refresh: latents anew from a cached level, beside the old ones, without opening a source."""

from __future__ import annotations

import time

from latents.cache.layout import CacheLayout
from latents.cache.reader import open_cache
from latents.cache.refs import write_recipes
from latents.cache.snapshot import load_snapshot
from latents.models.kl_vae import EncoderIdentity
from pipeline.job import CachedClipTask, EncodeJob
from pipeline.recipes import kl_recipes
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
    clips = open_cache(layout.root, level="clip", recipes=parents)
    snapshot = load_snapshot(layout)
    made = [set(snapshot.rows_of(recipe.digest)["clip"].to_pylist()) for recipe in recipes.values()]
    present = set.intersection(*made)
    uris = {row["digest"]: row["uri"] for row in snapshot.sources.to_pylist()}
    tasks = tuple(
        CachedClipTask(uri=uris.get(source, source), digest=source, clip=clip)
        for clip in clips
        if clip.clip not in present
        for source in [clip.rows["clip.video"].source]
    )
    write_recipes(layout, recipes.values())
    outcome = run_tasks(
        EncodeJob(
            settings=settings,
            levels=("kl",),
            device=device,
            cache_root=layout.root,
            reads_cached_clips=True,
        ),
        tasks,
        engine=engine,
        committer=open_committer(layout, recipes, snapshot, settings.run),
        to_quarantine=lambda event: encode_quarantine_row(event, recipes),
        unit="clips",
    )
    num_present = len(clips) - len(tasks)
    return JobResult(
        num_sources=len(clips),
        num_already_present=num_present,
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_quarantined=outcome.tally.num_failures,
        num_sources_with_rows=num_present + outcome.tally.num_clips,
        commit=move_current(layout, recipes),
        seconds=time.monotonic() - started,
    )
