"""Steps of a demo that make and check the cache."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.demo.plan import DemoPlan
from evaluation.demo.steps import Steps
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.verify import verify_cache
from latents.errors import CacheError, ConfigError
from pipeline.cli_settings import named_encoders
from pipeline.ingest import ingest
from pipeline.progress import Tally, show_progress
from pipeline.run import Engine, JobResult
from pipeline.sources import Source, find_sources
from pipeline.synth import synthesise

_SEED = 0


def make_scenes(folder: Path, plan: DemoPlan, steps: Steps) -> Path:
    """Scenes as mp4; those that are there stay."""
    title = f"{plan.num_clips} sounding scenes of {plan.seconds} s as mp4 -> {folder}"
    with (
        steps.step(title),
        show_progress("synthesised", plan.num_clips, unit="clips") as report,
    ):
        synthesise(
            folder,
            num_clips=plan.num_clips,
            seconds=plan.seconds,
            seed=_SEED,
            on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
        )
    return folder


def ingest_sources(
    videos: Path,
    cache: Path,
    plan: DemoPlan,
    *,
    device: str,
    open_engine: Callable[[], Engine],
    steps: Steps,
) -> tuple[CacheLayout, JobResult]:
    """Videos to the ``kl`` level, which then holds these and no others.

    Raises:
        CacheError: Nothing became a clip.
        ConfigError: The cache lies among the videos.
    """
    if cache.resolve().is_relative_to(videos.resolve()):
        raise ConfigError(
            f"{cache} lies in {videos}, so the demo would take what it makes for your videos; name "
            "another folder with --out (make demo DEMO=folder)"
        )
    with steps.step(f"decode and encode {videos} -> {cache}"):
        sources: Sequence[Source] = find_sources([str(videos)])
        layout = create_cache(cache)
        result = ingest(
            sources,
            layout=layout,
            settings=plan.ingest,
            encoders=named_encoders(plan.ingest, ("kl",)),
            levels=("kl",),
            engine=open_engine(),
            device=device,
            prune=True,
        )
        steps.note(
            f"{result.num_clips_encoded} clips encoded ({result.num_kl_images} images), "
            f"{result.num_already_present} of {result.num_sources} sources were there already, "
            f"{result.num_quarantined} quarantined"
        )
    if result.num_sources_with_rows == 0:
        raise CacheError(
            f"none of the {result.num_sources} sources in {videos} became a clip; see why with "
            f"`mmldm cache quarantine ls --cache {shlex.quote(layout.url)}`"
        )
    return layout, result


def verify(layout: CacheLayout, steps: Steps) -> None:
    """Reads every byte that the log names.

    Raises:
        CacheError: The cache is damaged.
    """
    num_shards = sum(1 for _ in layout.storage.list("shards"))
    with (
        steps.step(f"verify {layout.url}: every byte that the log names"),
        show_progress("verified", num_shards, unit="shards") as report,
    ):
        damaged = verify_cache(layout, on_shard=lambda done, total: report(Tally(num_done=done)))
        if damaged:
            raise CacheError(
                f"{layout.url} is damaged in {len(damaged)} places, first {damaged[0].path} at "
                f"byte {damaged[0].offset}: {damaged[0].problem}. Delete the folder and run again"
            )
        steps.note("intact")
