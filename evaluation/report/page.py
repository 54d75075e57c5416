"""The page: contents in, one self-contained HTML document out. Everything shown is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path, PurePath
from string import Template

from evaluation.report.compare import Rendition
from evaluation.report.contents import Cause, ComparedClip, Contents
from evaluation.report.figures import channel_ranges, histogram
from evaluation.report.media import data_uri
from latents.cache.inspect import FieldSummary

_HERE = Path(__file__).parent


def render_page(contents: Contents, *, fingerprint: str) -> str:
    """The document.

    Args:
        contents: What it shows.
        fingerprint: Kept in its head, to tell later whether it is of this cache's content.
    """
    sections = (
        _tiles(contents),
        _clips(contents),
        _fields(contents),
        _quarantine(contents.causes),
    )
    return Template(_asset("page.html")).substitute(
        fingerprint=escape(fingerprint),
        title=f"{escape(contents.name)} · mmldm cache report",
        style=_asset("style.css").strip(),
        heading=escape(contents.name),
        subtitle=_subtitle(contents),
        body="\n".join(sections),
        script=_asset("script.js").strip(),
    )


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _subtitle(contents: Contents) -> str:
    level = contents.summary.levels["kl"]
    return (
        f"Commit {contents.summary.commit} of {_date(contents.date)} · content "
        f"<code>{level.content_digest[:16]}</code> · KL-VAE encoder "
        f"<code>{contents.kl_vae[:12]}</code>"
    )


def _tiles(contents: Contents) -> str:
    level = contents.summary.levels["kl"]
    seconds = sum(contents.durations_seconds)
    ratio = contents.raw_bytes / contents.latent_bytes
    tiles = [
        (f"{level.num_sources:,}", "sources"),
        (f"{level.num_clips:,}", "clips"),
        (f"{level.num_windows:,}", "windows to train on"),
        (_duration(seconds), "pictures and sound"),
        (_bytes(contents.latent_bytes), f"latents, {ratio:.0f}&times; smaller"),
    ]
    if contents.mean_psnr_db is not None and contents.mean_mel_error_db is not None:
        tiles.append((f"{contents.mean_psnr_db:.1f} dB", "PSNR of pictures"))
        tiles.append((f"{contents.mean_mel_error_db:.1f} dB", "error of mels"))
    return _group(
        "tiles", (f'<div class="card tile"><b>{v}</b><span>{s}</span></div>' for v, s in tiles)
    )


def _clips(contents: Contents) -> str:
    return (
        "<h2>Clips and what their latents hold</h2>"
        f'<p class="note">{len(contents.clips)} clips, spread evenly over the cache. Left: the '
        "clip as it was encoded. Right: its cached posterior mean, decoded by the KL-VAE. The "
        "sound on the right is Griffin-Lim of the decoded mel image, without a trained vocoder: "
        "its phases are guessed, so it sounds metallic even where the mel is right. Windows side "
        "by side are joined before Griffin-Lim; the last one overlaps its neighbour to reach the "
        "end, and what no window covers is silent.</p>"
        + _group("clips", (_clip(clip) for clip in contents.clips))
    )


def _clip(clip: ComparedClip) -> str:
    comparison = clip.comparison
    name = clip.source if clip.source.startswith("scenes:") else PurePath(clip.source).name
    title = clip.label.replace("_", " ") if clip.label else name
    start, stop = clip.start_seconds, clip.start_seconds + comparison.seconds
    about = f"{name}, {start:g} to {stop:g} s" if clip.label else f"{start:g} to {stop:g} s"
    original = (
        _rendition(comparison.original, "source", "Source")
        if comparison.original is not None
        else f'<div class="absent">Not shown: {escape(clip.absence or "")}.</div>'
    )
    reconstruction = _rendition(comparison.reconstruction, "reconstruction", "From latents")
    return (
        f'<article class="card clip" id="{escape(clip.clip)}">'
        f"<header><b>{escape(title)}</b><span>{escape(about)}</span></header>"
        f'<div class="pair">{original}{reconstruction}</div>{_figures(clip)}</article>'
    )


def _rendition(rendition: Rendition, side: str, caption: str) -> str:
    return (
        f"<figure><figcaption>{caption}</figcaption><video controls loop playsinline "
        f'preload="auto" data-side="{side}" '
        f'src="{data_uri(rendition.video, "video/mp4")}"></video>'
        f'<img class="mel" alt="Log mel, low frequencies at the bottom" '
        f'src="{data_uri(rendition.mel, "image/png")}"></figure>'
    )


def _figures(clip: ComparedClip) -> str:
    comparison = clip.comparison
    if comparison.psnr_db is None or comparison.mel_error_db is None:
        return ""
    return (
        f"<footer><span>PSNR <b>{comparison.psnr_db:.1f} dB</b></span>"
        f"<span>mel error <b>{comparison.mel_error_db:.1f} dB</b></span>"
        '<span class="play">Play both with <button data-sound="source">source sound</button>'
        '<button data-sound="reconstruction">decoded sound</button></span></footer>'
    )


def _fields(contents: Contents) -> str:
    summary = contents.summary
    fields = _table(
        ("Field", "Clips", "Size", "Recipe"),
        (
            (escape(name), f"{field.num_clips:,}", _bytes(field.num_bytes), _digest(field.recipe))
            for name, field in summary.fields.items()
        ),
        numbers=(1, 2),
    )
    levels = _table(
        ("Level", "Sources", "Clips", "Windows", "Content"),
        (
            (
                escape(name),
                f"{level.num_sources:,}",
                f"{level.num_clips:,}",
                f"{level.num_windows:,}" if name == "kl" else "",
                _digest(level.content_digest),
            )
            for name, level in summary.levels.items()
        ),
        numbers=(1, 2, 3),
    )
    tables = [_panel("Levels", levels), _panel("Fields", fields)]
    charts = [
        _panel("Length of a clip, in seconds", histogram(contents.durations_seconds, unit="s")),
        _panel("Loudness of a clip, in dBFS", histogram(contents.loudness_dbfs, unit="dBFS")),
        *(_channels(name, field) for name, field in summary.fields.items()),
    ]
    return (
        "<h2>What is in the cache</h2>"
        f'<p class="note">Decoded, the clips are {_bytes(contents.raw_bytes)}: pictures as 8-bit '
        "RGB and sound as one channel of 16 bits at its own rate. The latents keep mean and "
        "log-variance of every frame and of every window's mel image, in float16.</p>"
        + _group("tables", tables)
        + _group("charts", charts)
    )


def _channels(name: str, field: FieldSummary) -> str:
    if field.mean is None or field.std is None:
        return ""
    return _panel(f"{name}, mean ± std by channel", channel_ranges(field.mean, field.std))


def _quarantine(causes: Sequence[Cause]) -> str:
    heading = "<h2>Quarantine</h2>"
    if not causes:
        return f'{heading}<p class="note">Nothing: every source became clips.</p>'
    rows = []
    for cause in causes:
        examples = "<br>".join(
            f"<code>{escape(_file_name(source))}</code> {escape(message)}"
            for source, message in cause.examples
        )
        rows.append((escape(cause.error_class), escape(cause.stage), f"{cause.count:,}", examples))
    table = _table(("Cause", "Stage", "Count", "For example"), rows, numbers=(2,))
    total = sum(cause.count for cause in causes)
    return (
        f'{heading}<p class="note">{total} clips or whole sources were given up; the rest went on '
        f'without them.</p><div class="card">{table}</div>'
    )


def _file_name(source: str) -> str:
    return source if source.startswith("scenes:") else PurePath(source).name


def _panel(title: str, content: str) -> str:
    return f'<section class="card"><h3>{escape(title)}</h3>{content}</section>'


def _group(name: str, parts: Iterable[str]) -> str:
    return f'<div class="{name}">{"".join(parts)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        classes = (' class="number"' if column in numbers else "" for column in range(len(row)))
        return "".join(
            f"<{tag}{css}>{cell}</{tag}>" for css, cell in zip(classes, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _digest(digest: str) -> str:
    return f'<code title="{digest}">{digest[:12]}</code>'


def _date(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return escape(iso)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
