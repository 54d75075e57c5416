"""The section of windows, each beside what its perceptual latents hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from evaluation.report.charts import Curve, line_chart
from evaluation.report.figures import histogram
from evaluation.report.markup import group, panel, tiles
from evaluation.report.media import data_uri
from evaluation.report.metrics import MetricsLine, running_mean
from evaluation.report.page_clips import absent_figure, play_both, rendition_figure, scene_title
from evaluation.report.windows import ShownWindow, WindowsContents
from latents.models.modal_encoder_files import BUNDLED_AUTOENCODER
from pipeline.originals import Unavailable
from training.autoencoder_run import MEASURED_FILE
from training.reconstruction import WindowError

AIMED_RATIO = 0.7
"""Of the error of pictures to that of the mean frame: clearly below 1."""
_MAX_DRAWN_RATIO = 2.0


def windows_section(contents: WindowsContents) -> str:
    """Figures of all windows, and some windows to look at."""
    overall = contents.overall
    figures = [
        (
            f"{overall.video_ratio:.3f}" if overall.video_ratio is not None else "-",
            "pictures: error relative to the mean frame's",
        ),
        (f"{overall.audio:.3f}", "sound: squared error, whitened"),
        (f"{len(contents.errors):,}", f"{_kind(contents)} windows measured"),
    ]
    panels = [panel("Error of pictures, by window", _ratios(contents.errors))]
    if contents.metrics is not None:
        panels.append(panel("Training of the autoencoder", _training(contents.metrics)))
    return (
        "<h2>Windows through the autoencoder</h2>"
        f'<p class="note">{_introduction(contents)}</p>'
        + tiles(figures)
        + f'<p class="note">{_meaning(overall)} {_bundled()}</p>'
        + group("clips", map(_window, contents.shown))
        + group("curves", panels)
    )


def strip_figure(strip: bytes, captions: Sequence[str]) -> str:
    """Rows of stills, each with its caption beside it."""
    rows = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    beside = f"<div>{rows}</div>" if captions else ""
    return (
        f'<div class="strip">{beside}<img alt="Stills: {escape("; ".join(captions))}" '
        f'src="{data_uri(strip, "image/png")}"></div>'
    )


def noted_curves(
    lines: Sequence[MetricsLine], names: Sequence[tuple[str, str, str]]
) -> list[Curve]:
    """What was noted of each step, faint, and its running mean.

    Args:
        lines: Of a training run.
        names: Key in the lines, name and style of each curve.
    """
    faint, smooth = [], []
    for key, name, style in names:
        noted = [(line.step, line.train[key]) for line in lines if key in line.train]
        means = running_mean([value for _, value in noted])
        faint.append(Curve(name=name, style=style, points=tuple(noted), is_faint=True))
        points = tuple((step, mean) for (step, _), mean in zip(noted, means, strict=True))
        smooth.append(Curve(name=name, style=style, points=points))
    return faint + smooth


def _kind(contents: WindowsContents) -> str:
    return "held-out" if contents.split == "validation" else "trained"


def _introduction(contents: WindowsContents) -> str:
    held_out = (
        "The windows are of sources that training holds out."
        if contents.split == "validation"
        else "<b>No source of this cache is held out</b>, so these are windows to train on: on "
        "others it may do worse."
    )
    measured = (
        ""
        if len(contents.errors) == contents.num_windows
        else f" Measured are {len(contents.errors):,} of {contents.num_windows:,}, of clips spread "
        "evenly."
    )
    return (
        f"The autoencoder <code>{escape(contents.autoencoder)}</code> codes a window, frames and "
        "sound, as two small latents: the cache's perceptual level. Its signal decoder gives KL "
        f"latents back from them in one step, and the KL-VAE pictures. {held_out}{measured}"
    )


def _meaning(overall: WindowError) -> str:
    ratio = overall.video_ratio
    if ratio is None:
        found = "Nothing moves in these windows, so there is no ratio."
    elif ratio < AIMED_RATIO:
        found = f"Here it is {ratio:.3f}: below {AIMED_RATIO:g}."
    else:
        found = f"Here it is {ratio:.3f}: not below {AIMED_RATIO:g}."
    return (
        "Errors are mean squares of whitened KL latents, which is what training minimises; they "
        "are not what an eye or ear would say. That of the pictures stands relative to that of the "
        "mean frame: the mean of a window's latents shown for every frame. At 1 a still picture "
        "would do as well, and at 0 everything is given back. The aim is clearly below 1, at most "
        f"{AIMED_RATIO:g}. <b>{found}</b> For sound, 1 is about the error of giving back the "
        "mean of all sounds that the autoencoder first learned from. Below each window stand its "
        "own two figures."
    )


def _bundled() -> str:
    """What the bundled autoencoder was measured to do, on more scenes than a demo holds out."""
    record = json.loads((BUNDLED_AUTOENCODER / MEASURED_FILE).read_text(encoding="utf-8"))
    held_out = record["held_out"]
    return (
        f"The bundled autoencoder's ratio, over {held_out['num_windows']} windows of synthetic "
        f"scenes that it was not trained on, is {held_out['video_ratio']:.3f}."
    )


def _ratios(errors: Sequence[WindowError]) -> str:
    ratios = [error.video_ratio for error in errors if error.video_ratio is not None]
    if not ratios:
        return '<p class="note">Nothing moves in any window.</p>'
    chart = histogram(
        [min(ratio, _MAX_DRAWN_RATIO) for ratio in ratios],
        unit="of the mean frame's error",
        of="windows",
    )
    num_beyond = sum(ratio > _MAX_DRAWN_RATIO for ratio in ratios)
    remarks = []
    if num_beyond:
        remarks.append(f"{num_beyond} beyond {_MAX_DRAWN_RATIO:g} stand at {_MAX_DRAWN_RATIO:g}.")
    if len(ratios) < len(errors):
        remarks.append(f"{len(errors) - len(ratios)} in which nothing moves are left out.")
    num_below = sum(ratio < 1 for ratio in ratios)
    remarks.append(f"{num_below} of {len(ratios)} are below 1.")
    return f'{chart}<p class="note">{" ".join(remarks)}</p>'


def _training(lines: Sequence[MetricsLine]) -> str:
    names = (("video_error", "pictures", "video"), ("audio_error", "sound", "audio"))
    return line_chart(noted_curves(lines, names), x_label="step", y_label="squared error")


def _window(window: ShownWindow) -> str:
    original = (
        absent_figure(window.original.reason)
        if isinstance(window.original, Unavailable)
        else rendition_figure(window.original, "source", "Source")
    )
    decoded = rendition_figure(window.decoded, "decoded", "From perceptual latents")
    header = scene_title(
        window.source, window.label, start_seconds=window.start_seconds, seconds=window.seconds
    )
    strip = strip_figure(window.strip, ("KL-VAE", "mean frame", "autoencoder"))
    return (
        f'<article class="card clip" id="{escape(window.clip)}-{window.window}">{header}'
        f'<div class="pair">{original}{decoded}</div>{strip}{_figures(window)}</article>'
    )


def _figures(window: ShownWindow) -> str:
    ratio = window.error.video_ratio
    pictures = "nothing moves" if ratio is None else f"pictures <b>{ratio:.2f}</b>"
    buttons = (
        ""
        if isinstance(window.original, Unavailable)
        else play_both(("source", "source sound"), ("decoded", "decoded sound"))
    )
    return (
        f"<footer><span>{pictures}</span>"
        f"<span>sound <b>{window.error.audio:.3f}</b></span>{buttons}</footer>"
    )
