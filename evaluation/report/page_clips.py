"""The section of clips, each beside what its ``kl`` latents hold; and how two videos are paired."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evaluation.report.compare import Rendition
from evaluation.report.contents import ComparedClip
from evaluation.report.markup import file_name, group
from evaluation.report.media import data_uri


def clips_section(clips: Sequence[ComparedClip]) -> str:
    """Source and reconstruction of each clip, with their figures."""
    return (
        "<h2>Clips and what their latents hold</h2>"
        f'<p class="note">{len(clips)} clips, spread evenly over the cache. Left: the '
        "clip as it was encoded. Right: its cached posterior mean, decoded by the KL-VAE. The "
        "sound on the right is Griffin-Lim of the decoded mel image, without a trained vocoder: "
        "its phases are guessed, so it sounds metallic even where the mel is right. Windows side "
        "by side are joined before Griffin-Lim; the last one overlaps its neighbour to reach the "
        "end, and what no window covers is silent.</p>" + group("clips", map(_clip, clips))
    )


def scene_title(source: str, label: str | None, *, start_seconds: float, seconds: float) -> str:
    """The head of a card: what is seen, where it is from, and when."""
    name = file_name(source)
    title = label.replace("_", " ") if label else name
    start, stop = start_seconds, start_seconds + seconds
    about = f"{name}, {start:g} to {stop:g} s" if label else f"{start:g} to {stop:g} s"
    return f"<header><b>{escape(title)}</b><span>{escape(about)}</span></header>"


def rendition_figure(rendition: Rendition, side: str, caption: str) -> str:
    """A video over its mel; ``side`` is what `play_both` calls it."""
    return (
        f"<figure><figcaption>{caption}</figcaption><video controls loop playsinline "
        f'preload="auto" data-side="{side}" '
        f'src="{data_uri(rendition.video, "video/mp4")}"></video>'
        f'<img class="mel" alt="Log mel, low frequencies at the bottom" '
        f'src="{data_uri(rendition.mel, "image/png")}"></figure>'
    )


def absent_figure(absence: str | None) -> str:
    """What stands where a video cannot be had."""
    return f'<div class="absent">Not shown: {escape(absence or "")}.</div>'


def play_both(*sounds: tuple[str, str]) -> str:
    """A button for each side's sound: it plays both videos of the card from their start."""
    buttons = "".join(f'<button data-sound="{side}">{name}</button>' for side, name in sounds)
    return f'<span class="play">Play both with {buttons}</span>'


def _clip(clip: ComparedClip) -> str:
    comparison = clip.comparison
    header = scene_title(
        clip.source, clip.label, start_seconds=clip.start_seconds, seconds=comparison.seconds
    )
    original = (
        rendition_figure(comparison.original, "source", "Source")
        if comparison.original is not None
        else absent_figure(clip.absence)
    )
    reconstruction = rendition_figure(comparison.reconstruction, "reconstruction", "From latents")
    return (
        f'<article class="card clip" id="{escape(clip.clip)}">'
        f"{header}"
        f'<div class="pair">{original}{reconstruction}</div>{_figures(clip)}</article>'
    )


def _figures(clip: ComparedClip) -> str:
    comparison = clip.comparison
    if comparison.psnr_db is None or comparison.mel_error_db is None:
        return ""
    buttons = play_both(("source", "source sound"), ("reconstruction", "decoded sound"))
    return (
        f"<footer><span>PSNR <b>{comparison.psnr_db:.1f} dB</b></span>"
        f"<span>mel error <b>{comparison.mel_error_db:.1f} dB</b></span>"
        f"{buttons}</footer>"
    )
