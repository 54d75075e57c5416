"""A demo from its first step to its last: videos, cache, models, samples, report."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation.demo.cache_steps import ingest_sources, make_scenes, verify
from evaluation.demo.model_steps import (
    ModelFolders,
    make_perceptual_level,
    model_folders,
    train_the_autoencoder,
    train_the_dit,
)
from evaluation.demo.plan import DemoPlan
from evaluation.demo.sample_steps import report_on, sample_all_tasks
from evaluation.demo.steps import Say, Steps
from latents.cache.inspect import summarise_level
from latents.cache.layout import CacheLayout
from latents.cache.reader import open_cache
from latents.errors import InterruptedJobError
from latents.fields import Level
from pipeline.run import Engine, JobResult

_NUM_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Where a demo ended."""

    report: Path
    cache: Path
    models: ModelFolders
    kl_digest: str
    """Content of the cache's ``kl`` level."""
    perceptual_digest: str
    """Content of its ``perceptual`` level."""
    job: JobResult
    """The ingest."""


def run_demo(
    out: Path,
    *,
    clips: Path | None,
    plan: DemoPlan,
    device: str,
    open_engine: Callable[[], Engine],
    say: Say,
) -> DemoResult:
    """Scenes or clips -> ``out/cache`` -> trained models -> samples -> ``out/report.html``.

    What an earlier run finished is not done again.

    Args:
        out: Folder for everything that is made.
        clips: Videos to take; None makes scenes in ``out/scenes``.
        plan: What is made and trained.
        device: Where to encode, train and decode.
        open_engine: Gives the engine that encodes.
        say: Takes each line of what is told to the user.

    Raises:
        InterruptedJobError: Ctrl-C; what was finished stays.
        CacheError: Nothing became a clip, or the cache is damaged.
        JobError: Any other fault that is not a clip's.
    """
    started = time.monotonic()
    steps = Steps(_NUM_STEPS if clips is None else _NUM_STEPS - 1, say)
    try:
        result = _run(out, clips, plan, device, open_engine, steps)
    except KeyboardInterrupt:
        raise InterruptedJobError(
            signal.SIGINT,
            "interrupted; everything finished stays. Run the same command again and it goes on "
            "from there",
        ) from None
    _conclude(result, time.monotonic() - started, say)
    return result


def _run(
    out: Path,
    clips: Path | None,
    plan: DemoPlan,
    device: str,
    open_engine: Callable[[], Engine],
    steps: Steps,
) -> DemoResult:
    videos = make_scenes(out / "scenes", plan, steps) if clips is None else clips
    layout, job = ingest_sources(
        videos, out / "cache", plan, device=device, open_engine=open_engine, steps=steps
    )
    folders = model_folders(out, layout, plan.training)
    train_the_autoencoder(folders, layout, plan, device=device, steps=steps)
    make_perceptual_level(
        folders, layout, plan, device=device, open_engine=open_engine, steps=steps
    )
    verify(layout, steps)
    train_the_dit(folders, layout, plan, device=device, steps=steps)
    sample_all_tasks(folders, layout, plan, device=device, steps=steps)
    report = out / "report.html"
    report_on(folders, layout, report, plan, device=device, steps=steps)
    return DemoResult(
        report=report,
        cache=Path(layout.url),
        models=folders,
        kl_digest=_content_digest(layout, "kl"),
        perceptual_digest=_content_digest(layout, "perceptual"),
        job=job,
    )


def _content_digest(layout: CacheLayout, level: Level) -> str:
    return summarise_level(open_cache(layout.url, level=level)).content_digest


def _conclude(result: DemoResult, seconds: float, say: Say) -> None:
    cache, models = shlex.quote(str(result.cache)), result.models
    dit, autoencoder = shlex.quote(str(models.dit)), shlex.quote(str(models.autoencoder))
    say("")
    say(f"Done in {seconds:.0f} s. Open {result.report}")
    say(f"Content of the cache  kl {result.kl_digest}")
    say(f"                      perceptual {result.perceptual_digest}")
    if result.job.num_quarantined:
        say(
            f"Quarantined           {result.job.num_quarantined} clips or sources; the report "
            f"says why, and so does `mmldm cache quarantine ls --cache {cache}`"
        )
    say("")
    say("Next:")
    for purpose, command in (
        ("what is in the cache", f"mmldm cache inspect --cache {cache}"),
        ("more samples", f"mmldm sample {dit} --autoencoder {autoencoder} --seed 1 --out samples"),
        ("this demo on your videos", "mmldm demo --out mine --clips FOLDER"),
        ("both models from scratch", "mmldm demo --from-scratch"),
    ):
        say(f"  {purpose:26}  {command}")
