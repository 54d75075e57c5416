"""The section of samples: each video, beside the window that it goes by."""

from __future__ import annotations

from html import escape

from evaluation.report.markup import file_name, group
from evaluation.report.page_clips import absent_figure, play_both, rendition_figure
from evaluation.report.page_windows import strip_figure
from evaluation.report.samples import GivenShown, SamplesContents, ShownSample
from pipeline.originals import Unavailable
from training.diffusion.tasks import Task

EXPECTATION = (
    "What a tiny model makes: the skies, grounds and colours of scenes, with soft patches where "
    "something would be or move, and no clean object. What is given changes little of what is "
    "sampled beside it."
)
"""What to expect of the bundled and the smallest models."""

_TITLES: dict[Task, str] = {
    "svg": "svg: sounding videos, from nothing",
    "a2v": "a2v: pictures for a given sound",
    "v2a": "v2a: sound for given pictures",
}
_CAPTIONS: dict[Task, tuple[str, str]] = {
    "a2v": ("Given: its sound", "Sampled: pictures"),
    "v2a": ("Given: its pictures", "Sampled: sound"),
}


def samples_section(contents: SamplesContents) -> str:
    """Some samples of each task."""
    parts = []
    for task, title in _TITLES.items():
        samples = [sample for sample in contents.shown if sample.task == task]
        if samples:
            layout = "samples" if task == "svg" else "clips"
            parts.append(f"<h3>{title}</h3>" + group(layout, map(_sample, samples)))
    return (
        f'<h2>Samples</h2><p class="note">{_introduction(contents)}</p>'
        f'<section class="tasks">{"".join(parts)}</section>'
    )


def _introduction(contents: SamplesContents) -> str:
    count = (
        f"All {contents.num_samples} there are"
        if len(contents.shown) == contents.num_samples
        else f"{len(contents.shown)} of {contents.num_samples}, the first of each task"
    )
    others = contents.num_of_another_dit
    return (
        "Latents drawn by a DiT from noise, decoded by the signal decoder, the KL-VAE and a "
        f"vocoder. {count}; none was picked. Where pictures or sound were given, they stand to the "
        f"left, and the sample repeats them. {EXPECTATION}"
        + (
            f" <b>{others} of those shown were made by another DiT than the one above.</b>"
            if others
            else ""
        )
    )


def _sample(sample: ShownSample) -> str:
    if sample.given is None:
        caption = "Sampled" if sample.task == "svg" else "Sampled; what was given is not on record"
        video = rendition_figure(sample.sample, "sample", caption)
        strip = strip_figure(sample.strip, ())
        return (
            f'<article class="card clip"><header><b>{escape(sample.name)}</b></header>'
            f"{video}{strip}</article>"
        )
    given, captions = sample.given, _CAPTIONS[sample.task]
    left = _given(given, captions[0])
    right = rendition_figure(sample.sample, "sample", captions[1])
    label = given.label.replace("_", " ") if given.label else ""
    about = f"{label} · {file_name(given.name)}" if label else file_name(given.name)
    buttons = ""
    if not isinstance(given.window, Unavailable):
        buttons = play_both(("given", "given window's sound"), ("sample", "sample's sound"))
    return (
        f'<article class="card clip"><header><b>{escape(sample.name)}</b>'
        f"<span>given {escape(about)}</span></header>"
        f'<div class="pair">{left}{right}</div>{strip_figure(sample.strip, _rows(sample))}'
        f"<footer>{buttons}</footer></article>"
    )


def _given(given: GivenShown, caption: str) -> str:
    if isinstance(given.window, Unavailable):
        return absent_figure(given.window.reason)
    from_latents = ", from its KL latents" if given.is_decoded else ""
    return rendition_figure(given.window, "given", f"{caption}{from_latents}")


def _rows(sample: ShownSample) -> tuple[str, ...]:
    if sample.task == "v2a":
        return ("given",)
    is_shown = sample.given is not None and not isinstance(sample.given.window, Unavailable)
    return ("given window", "sampled") if is_shown else ("sampled",)
