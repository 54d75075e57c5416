"""The sections on the cache as a whole: its figures, its fields, and what it gave up."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evaluation.report.contents import Cause, Contents
from evaluation.report.figures import channel_ranges, histogram
from evaluation.report.markup import (
    byte_count,
    duration,
    file_name,
    group,
    panel,
    short_digest,
    table,
    tiles,
)
from latents.cache.inspect import FieldSummary


def cache_tiles(contents: Contents) -> str:
    """The figures of the cache."""
    level = contents.summary.levels["kl"]
    ratio = contents.raw_bytes / contents.latent_bytes
    figures = [
        (f"{level.num_sources:,}", "sources"),
        (f"{level.num_clips:,}", "clips"),
        (f"{level.num_windows:,}", "windows to train on"),
        (duration(sum(contents.durations_seconds)), "pictures and sound"),
        (byte_count(contents.latent_bytes), f"latents, {ratio:.0f}&times; smaller"),
    ]
    if contents.mean_psnr_db is not None and contents.mean_mel_error_db is not None:
        figures.append((f"{contents.mean_psnr_db:.1f} dB", "PSNR of pictures"))
        figures.append((f"{contents.mean_mel_error_db:.1f} dB", "error of mels"))
    return tiles(figures)


def fields_section(contents: Contents) -> str:
    """Levels and fields as tables, and how their values are spread."""
    summary = contents.summary
    fields = table(
        ("Field", "Clips", "Size", "Recipe"),
        (
            (
                escape(name),
                f"{field.num_clips:,}",
                byte_count(field.num_bytes),
                short_digest(field.recipe),
            )
            for name, field in summary.fields.items()
        ),
        numbers=(1, 2),
    )
    levels = table(
        ("Level", "Sources", "Clips", "Windows", "Content"),
        (
            (
                escape(name),
                f"{level.num_sources:,}",
                f"{level.num_clips:,}",
                f"{level.num_windows:,}" if name == "kl" else "",
                short_digest(level.content_digest),
            )
            for name, level in summary.levels.items()
        ),
        numbers=(1, 2, 3),
    )
    charts = [
        panel("Length of a clip, in seconds", histogram(contents.durations_seconds, unit="s")),
        panel("Loudness of a clip, in dBFS", histogram(contents.loudness_dbfs, unit="dBFS")),
        *(_channels(name, field) for name, field in summary.fields.items()),
    ]
    return (
        "<h2>What is in the cache</h2>"
        f'<p class="note">Decoded, the clips are {byte_count(contents.raw_bytes)}: pictures as '
        "8-bit RGB and sound as one channel of 16 bits at its own rate. The latents keep mean and "
        "log-variance of every frame and of every window's mel image, in float16.</p>"
        + group("tables", [panel("Levels", levels), panel("Fields", fields)])
        + group("charts", charts)
    )


def quarantine_section(causes: Sequence[Cause]) -> str:
    """Why clips and sources were given up."""
    heading = "<h2>Quarantine</h2>"
    if not causes:
        return f'{heading}<p class="note">Nothing: every source became clips.</p>'
    rows = []
    for cause in causes:
        examples = "<br>".join(
            f"<code>{escape(file_name(source))}</code> {escape(message)}"
            for source, message in cause.examples
        )
        rows.append((escape(cause.error_class), escape(cause.stage), f"{cause.count:,}", examples))
    listed = table(("Cause", "Stage", "Count", "For example"), rows, numbers=(2,))
    total = sum(cause.count for cause in causes)
    return (
        f'{heading}<p class="note">{total} clips or whole sources were given up; the rest went on '
        f'without them.</p><div class="card">{listed}</div>'
    )


def _channels(name: str, field: FieldSummary) -> str:
    if field.mean is None or field.std is None:
        return ""
    return panel(f"{name}, mean ± std by channel", channel_ranges(field.mean, field.std))
