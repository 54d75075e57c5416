"""Writing a report: a cache and its KL-VAE in, one HTML file out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.report.compare import CompareClip
from evaluation.report.contents import (
    ComparedClip,
    Contents,
    choose_evenly,
    group_causes,
    raw_bytes,
    scene_label,
)
from evaluation.report.fingerprint import report_fingerprint
from evaluation.report.metrics import last_held_out
from evaluation.report.page import render_page
from evaluation.report.trained import (
    ShowTrained,
    TrainedContents,
    TrainedModels,
)
from latents.cache.commit import read_commit
from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.reader import CachedClip, CachedLevel, open_cache
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.durable import replace_file
from latents.errors import CacheError, ConfigError
from latents.models.kl_vae import load_kl_vae
from pipeline.originals import Originals, Unavailable
from pipeline.recorded import Recorded, read_recorded, require_encoder

_FINGERPRINT = re.compile(r'<meta name="mmldm-report" content="([^"]*)">')
_HEAD_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFigures:
    """How one clip compares; None where it could not be had to compare with."""

    clip: str
    psnr_db: float | None
    mel_error_db: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult:
    """What was written."""

    path: str
    clips: tuple[ClipFigures, ...]
    mean_psnr_db: float | None
    mean_mel_error_db: float | None
    num_windows: int | None = None
    """Windows that an autoencoder was measured on; None, as what follows, where none was asked
    for."""
    are_held_out: bool | None = None
    """False where the cache holds no source out, so that they are windows to train on."""
    video_ratio: float | None = None
    """Error of their pictures, relative to that of each window's mean frame."""
    audio_error: float | None = None
    """Squared error of their whitened KL latents of sound."""
    dit_losses: Mapping[str, Mapping[str, float]] | None = None
    """The last held-out losses of a DiT, by case and modality; None also where it noted none."""
    num_samples: int | None = None
    """Samples that are shown."""


def write_report(
    cache: Path,
    out: Path,
    *,
    kl_vae: str,
    num_clips: int,
    device: str,
    num_threads: int,
    models: TrainedModels | None = None,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> ReportResult:
    """Writes one self-contained HTML page about a cache's ``kl`` level, and models of it.

    Equal caches, sources and models give equal pages.

    Args:
        cache: The cache's folder.
        out: The file to write; what is there is replaced once the new page is whole.
        kl_vae: The KL-VAE that made the cache, as `load_kl_vae` takes it.
        num_clips: Clips to show, spread evenly over the cache.
        device: Where to decode latents.
        num_threads: Threads that decode; torch is to be set to one thread.
        models: What was trained on the cache, to be shown too.
        on_clip: Called with clips done and their total, after each.

    Raises:
        CacheError: No such cache, no ``kl`` level in it, or no clips; or, for models, no
            ``perceptual`` level.
        ModelError: A model cannot be loaded, or its encoder did not make this cache.
        StaleFieldError: The DiT was trained on other latents.
        ConfigError: The file cannot be written, or samples cannot be read.
    """
    if out.is_dir():
        raise ConfigError(
            f"{out} is a folder; name the file to write, for example {out}/report.html"
        )
    layout = find_cache(cache)
    level = open_cache(cache, level="kl")
    if not len(level):
        raise CacheError(f"{cache} holds no clips to report on; ingest some")
    snapshot = load_snapshot(layout, level.commit)
    recorded = read_recorded(
        layout, video_recipe=level.recipes["kl.video"], audio_recipe=level.recipes["kl.audio"]
    )
    decoder = load_kl_vae(kl_vae, device=device)
    require_encoder(recorded, decoder.identity, kl_vae=kl_vae)
    show_trained = models and ShowTrained(
        models,
        level,
        recorded,
        decoder,
        kl_vae_source=kl_vae,
        device=device,
        num_threads=num_threads,
    )
    compare = CompareClip(level, recorded, decoder, num_threads=num_threads)
    chosen = choose_evenly(level.clips, num_clips)
    clips = []
    with closing(Originals(layout, snapshot, recorded)) as originals:
        for cached in chosen:
            clips.append(_compare(cached, originals, compare))
            on_clip(len(clips), len(chosen))
        trained = show_trained(originals) if show_trained else None
    contents = _contents(layout, level, snapshot, recorded, tuple(clips))
    fingerprint = report_fingerprint(contents.summary, num_clips, kl_vae=kl_vae, models=models)
    page = render_page(contents, fingerprint=fingerprint, trained=trained)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, page.encode())
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); name another file"
        ) from error
    return _result(out, contents, trained)


def _result(out: Path, contents: Contents, trained: TrainedContents | None) -> ReportResult:
    result = ReportResult(
        path=str(out),
        clips=tuple(
            ClipFigures(
                clip=clip.clip,
                psnr_db=clip.comparison.psnr_db,
                mel_error_db=clip.comparison.mel_error_db,
            )
            for clip in contents.clips
        ),
        mean_psnr_db=contents.mean_psnr_db,
        mean_mel_error_db=contents.mean_mel_error_db,
    )
    if trained is None:
        return result
    windows, dit, samples = trained.windows, trained.dit, trained.samples
    last = last_held_out(dit.lines) if dit is not None and dit.lines else None
    return replace(
        result,
        num_windows=len(windows.errors),
        are_held_out=windows.split == "validation",
        video_ratio=windows.overall.video_ratio,
        audio_error=windows.overall.audio,
        dit_losses=last[1].losses if last else None,
        num_samples=len(samples.shown) if samples is not None else None,
    )


def count_shown(cache: Path, *, num_clips: int) -> int:
    """How many clips a report of a cache shows where so many are asked for."""
    return min(num_clips, len(open_cache(cache, level="kl")))


def is_report_of(
    out: Path,
    cache: Path,
    *,
    num_clips: int,
    kl_vae: str = "tiny",
    models: TrainedModels | None = None,
) -> bool:
    """Whether a file is the report of a cache as it is now, with so many clips and these models.

    Raises:
        ModelError: A model cannot be read.
        ConfigError: There are no samples where they are said to be.
    """
    try:
        with out.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return False
    found = _FINGERPRINT.search(head)
    summary = inspect_cache(find_cache(cache))
    wanted = report_fingerprint(summary, num_clips, kl_vae=kl_vae, models=models)
    return found is not None and found[1] == wanted


def _compare(cached: CachedClip, originals: Originals, compare: CompareClip) -> ComparedClip:
    row = cached.rows["kl.video"]
    source = originals.name(cached)
    original = originals.find(cached)
    absence = original.reason if isinstance(original, Unavailable) else None
    return ComparedClip(
        clip=cached.clip,
        source=source,
        label=scene_label(source),
        start_seconds=row.start_frame / row.fps,
        absence=absence,
        comparison=compare(cached, None if isinstance(original, Unavailable) else original),
    )


def _contents(
    layout: CacheLayout,
    level: CachedLevel,
    snapshot: Snapshot,
    recorded: Recorded,
    clips: tuple[ComparedClip, ...],
) -> Contents:
    rows = [clip.rows["kl.video"] for clip in level]
    summary = inspect_cache(layout)
    return Contents(
        name="/".join(Path(layout.url).resolve().parts[-2:]),
        date=read_commit(layout, snapshot.commit).run.get("started", "unknown date"),
        kl_vae=recorded.weights,
        summary=summary,
        durations_seconds=tuple(row.shape[0] / row.fps for row in rows),
        loudness_dbfs=tuple(row.loudness_dbfs for row in rows if row.loudness_dbfs is not None),
        raw_bytes=raw_bytes(level, recorded),
        latent_bytes=sum(summary.fields[name].num_bytes for name in level.recipes),
        clips=clips,
        causes=group_causes(snapshot.open_quarantine()),
    )
