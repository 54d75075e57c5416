"""The main job, whole and small: scenes or clips, a cache, its verification and its report."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evaluation.report.write import count_shown, is_report_of, write_report
from latents.cache.inspect import summarise_level
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.reader import open_cache
from latents.cache.verify import verify_cache
from latents.errors import CacheError, InterruptedJobError
from pipeline.cli_settings import named_encoders
from pipeline.ingest import ingest
from pipeline.progress import Tally, show_progress
from pipeline.run import Engine, JobResult
from pipeline.settings import IngestSettings
from pipeline.sources import find_sources
from pipeline.synth import synthesise

NUM_REPORTED = 8
"""Clips shown in the report."""
_NUM_STEPS = 4
_SEED = 0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Where a demo ended."""

    report: Path
    cache: Path
    content_digest: str
    """Of the cache's ``kl`` level."""
    job: JobResult


def run_demo(
    out: Path,
    *,
    clips: Path | None,
    num_clips: int,
    seconds: int,
    settings: IngestSettings,
    device: str,
    open_engine: Callable[[], Engine],
    say: Say,
) -> DemoResult:
    """Scenes or clips -> ``out/cache`` -> verified -> ``out/report.html``.

    What an earlier run finished is not done again.

    Args:
        out: Folder for everything that is made.
        clips: Videos to take; None makes scenes in ``out/scenes``.
        num_clips: Scenes to make.
        seconds: Length of a scene.
        settings: How to ingest.
        device: Where to encode and decode.
        open_engine: Gives the engine that ingests.
        say: Takes each line of what is told to the user.

    Raises:
        InterruptedJobError: Ctrl-C; what was finished stays.
        JobError: Any other fault that is not a clip's.
    """
    started = time.monotonic()
    try:
        sources = _make_scenes(out, num_clips, seconds, say) if clips is None else clips
        if clips is not None:
            say(f"[1/{_NUM_STEPS}] your clips in {clips}: nothing to make")
        layout, job = _ingest(out, sources, settings, device, open_engine, say)
        _verify(layout, say)
        _report(out, layout, settings, device, say)
    except KeyboardInterrupt:
        raise InterruptedJobError(
            signal.SIGINT,
            "interrupted; everything finished stays. Run the same command again and it goes on "
            "from there",
        ) from None
    result = DemoResult(
        report=out / "report.html",
        cache=Path(layout.url),
        content_digest=summarise_level(open_cache(layout.url, level="kl")).content_digest,
        job=job,
    )
    _conclude(result, time.monotonic() - started, say)
    return result


@contextmanager
def _step(number: int, title: str, say: Say) -> Iterator[None]:
    say(f"[{number}/{_NUM_STEPS}] {title}")
    started = time.monotonic()
    yield
    say(f"      {time.monotonic() - started:.1f} s")


def _make_scenes(out: Path, num_clips: int, seconds: int, say: Say) -> Path:
    scenes = out / "scenes"
    with (
        _step(1, f"{num_clips} sounding scenes of {seconds} s as mp4 -> {scenes}", say),
        show_progress("synthesised", num_clips, unit="clips") as report,
    ):
        synthesise(
            scenes,
            num_clips=num_clips,
            seconds=seconds,
            seed=_SEED,
            on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
        )
    return scenes


def _ingest(
    out: Path,
    sources: Path,
    settings: IngestSettings,
    device: str,
    open_engine: Callable[[], Engine],
    say: Say,
) -> tuple[CacheLayout, JobResult]:
    with _step(2, f"decode and encode {sources} -> {out / 'cache'}", say):
        found = find_sources([str(sources)])
        layout = create_cache(out / "cache")
        result = ingest(
            found,
            layout=layout,
            settings=settings,
            encoders=named_encoders(settings, ("kl",)),
            levels=("kl",),
            engine=open_engine(),
            device=device,
        )
        say(
            f"      {result.num_clips_encoded} clips encoded ({result.num_kl_images} images), "
            f"{result.num_already_present} of {result.num_sources} sources were there already, "
            f"{result.num_quarantined} quarantined"
        )
    if result.num_sources_with_rows == 0:
        raise CacheError(
            f"none of the {result.num_sources} sources in {sources} became a clip; see why with "
            f"`mmldm cache quarantine ls --cache {shlex.quote(layout.url)}`"
        )
    return layout, result


def _verify(layout: CacheLayout, say: Say) -> None:
    num_shards = sum(1 for _ in layout.storage.list("shards"))
    with (
        _step(3, f"verify {layout.url}: every byte that the log names", say),
        show_progress("verified", num_shards, unit="shards") as report,
    ):
        damaged = verify_cache(layout, on_shard=lambda done, total: report(Tally(num_done=done)))
    if damaged:
        raise CacheError(
            f"{layout.url} is damaged in {len(damaged)} places, first {damaged[0].path} at byte "
            f"{damaged[0].offset}: {damaged[0].problem}. Delete the folder and run again"
        )
    say("      intact")


def _report(
    out: Path, layout: CacheLayout, settings: IngestSettings, device: str, say: Say
) -> None:
    page, cache = out / "report.html", Path(layout.url)
    with _step(4, f"report -> {page}", say):
        if is_report_of(page, cache, num_clips=NUM_REPORTED):
            say("      the cache is as it was when this report was written; kept")
            return
        num_shown = count_shown(cache, num_clips=NUM_REPORTED)
        with show_progress("compared", num_shown, unit="clips") as report:
            result = write_report(
                cache,
                page,
                kl_vae=settings.kl_vae.source,
                num_clips=NUM_REPORTED,
                device=device,
                num_threads=settings.run.num_workers,
                on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
            )
        if result.mean_psnr_db is not None and result.mean_mel_error_db is not None:
            say(
                f"      {len(result.clips)} clips beside their reconstruction: PSNR "
                f"{result.mean_psnr_db:.1f} dB, mel error {result.mean_mel_error_db:.1f} dB"
            )


def _conclude(result: DemoResult, seconds: float, say: Say) -> None:
    cache = shlex.quote(str(result.cache))
    say("")
    say(f"Done in {seconds:.0f} s. Open {result.report}")
    say(f"Content of the cache  {result.content_digest}")
    if result.job.num_quarantined:
        say(
            f"Quarantined           {result.job.num_quarantined} clips or sources; the report "
            f"says why, and so does `mmldm cache quarantine ls --cache {cache}`"
        )
    say("")
    say("Next:")
    for command, purpose in (
        (f"mmldm cache inspect --cache {cache}", "what is in it"),
        (f"mmldm ingest FOLDER --cache {cache}", "your videos beside these; only new ones"),
        ("mmldm demo --out mine --clips FOLDER", "this demo on your videos"),
        ("mmldm train kl-vae --help", "a KL-VAE of your own, from a clip level"),
    ):
        say(f"  {command:44}  {purpose}")
