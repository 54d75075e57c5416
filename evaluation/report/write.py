"""Writing a report: a cache and its KL-VAE in, one HTML file out."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
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
from evaluation.report.page import render_page
from latents.cache.commit import read_commit
from latents.cache.inspect import CacheSummary, inspect_cache
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


def write_report(
    cache: Path,
    out: Path,
    *,
    kl_vae: str,
    num_clips: int,
    device: str,
    num_threads: int,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> ReportResult:
    """Writes one self-contained HTML page about a cache's ``kl`` level.

    Equal caches, sources and KL-VAEs give equal pages.

    Args:
        cache: The cache's folder.
        out: The file to write; what is there is replaced once the new page is whole.
        kl_vae: The KL-VAE that made the cache, as `load_kl_vae` takes it.
        num_clips: Clips to show, spread evenly over the cache.
        device: Where to decode latents.
        num_threads: Threads that decode; torch is to be set to one thread.
        on_clip: Called with clips done and their total, after each.

    Raises:
        CacheError: No such cache, no ``kl`` level in it, or no clips.
        ModelError: The KL-VAE cannot be loaded, or its encoder did not make this cache.
        ConfigError: The file cannot be written.
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
    compare = CompareClip(level, recorded, decoder, num_threads=num_threads)
    chosen = choose_evenly(level.clips, num_clips)
    clips = []
    with closing(Originals(layout, snapshot, recorded)) as originals:
        for cached in chosen:
            clips.append(_compare(cached, originals, compare))
            on_clip(len(clips), len(chosen))
    contents = _contents(layout, level, snapshot, recorded, tuple(clips))
    page = render_page(contents, fingerprint=report_fingerprint(contents.summary, num_clips))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, page.encode())
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); name another file"
        ) from error
    return ReportResult(
        path=str(out),
        clips=tuple(
            ClipFigures(
                clip=clip.clip,
                psnr_db=clip.comparison.psnr_db,
                mel_error_db=clip.comparison.mel_error_db,
            )
            for clip in clips
        ),
        mean_psnr_db=contents.mean_psnr_db,
        mean_mel_error_db=contents.mean_mel_error_db,
    )


def count_shown(cache: Path, *, num_clips: int) -> int:
    """How many clips a report of a cache shows where so many are asked for."""
    return min(num_clips, len(open_cache(cache, level="kl")))


def is_report_of(out: Path, cache: Path, *, num_clips: int) -> bool:
    """Whether a file is the report of a cache as it is now, with so many clips."""
    try:
        with out.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return False
    found = _FINGERPRINT.search(head)
    wanted = report_fingerprint(inspect_cache(find_cache(cache)), num_clips)
    return found is not None and found[1] == wanted


def report_fingerprint(summary: CacheSummary, num_clips: int) -> str:
    """Names what a report was written of."""
    return f"{summary.commit} {summary.levels['kl'].content_digest} {num_clips}"


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
