"""The section on a trained DiT: what it is, how its losses went, and what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from evaluation.report.charts import Curve, line_chart
from evaluation.report.dit import DiTContents
from evaluation.report.markup import group, panel, table, tiles
from evaluation.report.metrics import (
    HeldOut,
    MetricsLine,
    Verdict,
    last_held_out,
    verdicts,
)
from evaluation.report.page_windows import noted_curves
from training.dit.files import BUNDLED_DIT, MEASURED_FILE, BegunFrom

_CASES = ("svg", "a2v", "v2a", "a2v shuffled", "v2a shuffled", "linear")
_GIVEN = {("a2v", "audio"), ("a2v shuffled", "audio"), ("v2a", "video"), ("v2a shuffled", "video")}
"""What is given in a case: its own loss says little."""
_MODALITIES = (("video", "pictures", "a2v"), ("audio", "sound", "v2a"))
"""Modality, what it is called, and the task that makes it from the other one."""
_SLIGHT = 0.001
"""Part of a loss; what differs by less is not coloured."""
_STYLES = ("svg", "given", "shuffled", "linear")


def dit_section(contents: DiTContents) -> str:
    """Its size, its training, and what its last held-out losses say."""
    return (
        "<h2>The diffusion transformer</h2>"
        f'<p class="note">The DiT <code>{escape(contents.name)}</code>: {contents.depth} blocks of '
        f"width {contents.width}, trained to predict the noise in perceptual latents, of pictures "
        "and sound together (svg), of pictures where the sound is given (a2v), and of sound where "
        "the pictures are given (v2a).</p>"
        + _figures(contents)
        + (_training(contents.lines) if contents.lines else _nothing_noted())
    )


def _figures(contents: DiTContents) -> str:
    figures = [
        (_count(contents.num_parameters), "parameters"),
        (f"{contents.steps:,}", _steps_label(contents.begun_from)),
        (f"{contents.num_windows:,}", "windows in the train split"),
    ]
    if contents.lines and "epoch" in contents.lines[-1].train:
        seen = contents.lines[-1].train["epoch"]
        figures.append((f"{seen:,.{1 if seen < 10 else 0}f}", "times each window was seen"))
    return tiles(figures)


def _steps_label(begun_from: BegunFrom | None) -> str:
    if begun_from is None:
        return "steps"
    bundled = "the bundled " if begun_from.name == "tiny" else ""
    return f"steps, after {begun_from.steps:,} of {bundled}{escape(Path(begun_from.name).name)}"


def _nothing_noted() -> str:
    return (
        '<p class="note">Its folder holds no metrics, so nothing is known here of how its training '
        "went.</p>"
    )


def _training(lines: Sequence[MetricsLine]) -> str:
    names = (("video_loss", "pictures", "video"), ("audio_loss", "sound", "audio"))
    loss = "squared error of the noise"
    curves = noted_curves(lines, names)
    charts = [panel("Training", line_chart(curves, x_label="step", y_label=loss))]
    for modality, name, _ in _MODALITIES:
        held_out = _held_out_curves(lines, modality)
        if held_out:
            chart = line_chart(held_out, x_label="step", y_label=loss)
            charts.append(panel(f"Held-out windows: {name}", chart))
    note = (
        "In training, faint: single steps, each of a few windows at timesteps and tasks of its "
        "own; strong: a running mean over a twentieth of them."
    )
    if len(charts) > 1:
        note += " Held out, all cases share windows, timesteps and noise."
    last = last_held_out(lines)
    conclusion = _conclusion(*last) if last else _none_held_out()
    return group("curves", charts) + f'<p class="note">{note}</p>' + conclusion


def _held_out_curves(lines: Sequence[MetricsLine], modality: str) -> list[Curve]:
    """svg, the task that makes this modality, the same with a foreign condition, and linear.

    None where there are too few validations for a line.
    """
    task = next(task for name, _, task in _MODALITIES if name == modality)
    curves = []
    for case, style in zip(("svg", task, f"{task} shuffled", "linear"), _STYLES, strict=True):
        points = tuple(
            (float(line.step), line.held_out.losses[case][modality])
            for line in lines
            if line.held_out is not None and case in line.held_out.losses
        )
        if len(points) > 1:
            curves.append(Curve(name=case, style=style, points=points))
    return curves


def _none_held_out() -> str:
    return '<p class="note">No losses on held-out windows were noted.</p>'


def _conclusion(step: int, held_out: HeldOut) -> str:
    losses = panel(f"Held-out losses at step {step:,}", _losses(held_out))
    answers = panel("What they say", _answers(verdicts(held_out)))
    return group("tables", [losses, answers]) + (
        f'<p class="note">Over {held_out.num_windows:,} held-out windows. Shuffled: given the '
        "latent of another source's window. Linear: the best denoiser that knows only each "
        "channel's variance. In grey: what is given in that task, whose own loss says little, and "
        f"differences below 0.1%, which may well be chance. {_bundled()}</p>"
    )


def _bundled() -> str:
    """What the bundled DiT was measured to do, on more windows than a demo holds out."""
    record = json.loads((BUNDLED_DIT / MEASURED_FILE).read_text(encoding="utf-8"))["held_out"]
    losses = {case: record["losses"][case] for case in _CASES}
    svg, a2v, v2a, foreign_sound, foreign_pictures = (losses[case] for case in _CASES[:5])
    return (
        f"The bundled DiT, over {record['num_windows']} windows of synthetic scenes that it was "
        f"not trained on: pictures {svg['video']:.5f}, given their sound {a2v['video']:.5f}, given "
        f"another's {foreign_sound['video']:.5f}; sound {svg['audio']:.5f}, given its pictures "
        f"{v2a['audio']:.5f}, given others {foreign_pictures['audio']:.5f}; linear "
        f"{losses['linear']['video']:.5f} and {losses['linear']['audio']:.5f}."
    )


def _losses(held_out: HeldOut) -> str:
    known = [case for case in _CASES if case in held_out.losses]
    others = sorted(held_out.losses.keys() - set(_CASES))
    rows = (
        (escape(case), *(_loss(held_out, case, modality) for modality, _, _ in _MODALITIES))
        for case in [*known, *others]
    )
    return table(("Case", "Pictures", "Sound"), rows, numbers=(1, 2))


def _loss(held_out: HeldOut, case: str, modality: str) -> str:
    value = f"{held_out.losses[case][modality]:.4f}"
    return f'<span class="muted">{value}</span>' if (case, modality) in _GIVEN else value


def _answers(found: Sequence[Verdict]) -> str:
    questions = list(dict.fromkeys(verdict.question for verdict in found))
    rows = [
        (
            escape(question),
            *(_answer(found, question, modality) for modality, _, _ in _MODALITIES),
        )
        for question in questions
    ]
    return table(("Question", "Pictures", "Sound"), rows, numbers=())


def _answer(found: Sequence[Verdict], question: str, modality: str) -> str:
    for verdict in found:
        if (verdict.question, verdict.modality) == (question, modality):
            word = "yes" if verdict.is_met else "no"
            style = word if abs(verdict.margin) >= _SLIGHT else "muted"
            losses, *margin = comparison(verdict).split(", ")
            answer = f'<b class="{style}">{word}</b>: {escape(losses)}'
            return ", ".join([f'<span class="nowrap">{answer}</span>', *margin])
    return ""


def comparison(verdict: Verdict) -> str:
    """Both losses, in as many digits as tell them apart, and how far they are apart."""
    smaller, larger = verdict.smaller, verdict.larger
    if not (math.isfinite(smaller) and math.isfinite(larger)):
        return f"{smaller:g} and {larger:g} do not compare"
    sign = "<" if verdict.is_met else ">" if smaller > larger else "="
    for digits in (3, 4, 6, 9):
        texts = f"{smaller:.{digits}f}", f"{larger:.{digits}f}"
        if texts[0] != texts[1]:
            break
    return f"{texts[0]} {sign} {texts[1]}, by {100 * abs(verdict.margin):.2g}%"


def _count(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1_000_000 else f"{count:,}"
