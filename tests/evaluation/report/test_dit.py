"""What a page says of a DiT's training, from what the run has noted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.dit import DiTContents, dit_contents
from evaluation.report.metrics import (
    HeldOut,
    MetricsLine,
    Verdict,
    last_held_out,
    read_metrics,
    running_mean,
    verdicts,
)
from evaluation.report.page_dit import comparison, dit_section
from latents.errors import ModelError, StaleFieldError
from pipeline.recipes import perceptual_recipes
from tests.evaluation.report.conftest import LOSSES, Report
from tests.evaluation.report.reported import Reported, note, section
from tests.evaluation.sampling.small_models import make_dit, make_models
from training.dit.files import BUNDLED_DIT

TITLE = "The diffusion transformer"


def line(step: int, losses: Mapping[str, Any] | None = None) -> MetricsLine:
    return MetricsLine(
        step=step,
        train={"step": step, "epoch": 0.5, "video_loss": 1 / step, "audio_loss": 2 / step},
        held_out=HeldOut(losses=losses, num_windows=8) if losses else None,
    )


def page_of(*lines: MetricsLine) -> str:
    return dit_section(
        DiTContents(
            name="D",
            depth=4,
            width=128,
            num_parameters=1_460_000,
            steps=30,
            begun_from=None,
            num_windows=2702,
            lines=lines or None,
        )
    )


def answers(page: str) -> list[str]:
    """The cells of the table of answers, row by row."""
    cells = re.findall(r"<td>(.*?)</td>", page.split("What they say")[1])
    return [re.sub(r"<[^>]+>", "", cell) for cell in cells]


def test_the_page_says_what_was_trained_and_how_it_ended(report: Report) -> None:
    shown = section(report.page, TITLE)

    assert "1 blocks of width 32" in shown
    # Six of eight scenes, with four windows each, are not held out.
    assert "<b>24</b><span>windows in the train split</span>" in shown
    assert "<b>2.5</b><span>times each window was seen</span>" in shown
    assert "Held-out losses at step 10" in shown
    assert '<td>linear</td><td class="number">0.5000</td><td class="number">0.2500</td>' in shown
    assert report.result.dit_losses == LOSSES


def test_verdicts_are_those_of_the_losses(report: Report) -> None:
    assert answers(section(report.page, TITLE)) == [
        "Has it learned structure? svg below linear",
        "yes: 0.200 &lt; 0.500, by 60%",
        "no: 0.300 &gt; 0.250, by 20%",
        "Is the condition used? given below svg",
        "yes: 0.182 &lt; 0.200, by 9%",
        "no: 0.310 &gt; 0.300, by 3.3%",
    ]


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [("svg", "linear"), ("a2v", "svg"), ("a2v", "a2v shuffled")],
)
def test_a_verdict_flips_with_its_losses(smaller: str, larger: str) -> None:
    losses = deepcopy(LOSSES) | {"a2v shuffled": {"video": 0.19, "audio": 0.3}}

    def answer() -> bool:
        held_out = HeldOut(losses=losses, num_windows=8)
        return next(
            verdict.is_met
            for verdict in verdicts(held_out)
            if (verdict.smaller, verdict.larger)
            == (losses[smaller]["video"], losses[larger]["video"])
        )

    assert answer()
    losses[smaller], losses[larger] = losses[larger], losses[smaller]
    assert not answer()


def test_questions_of_missing_cases_are_not_asked() -> None:
    assert not any("shuffled" in cell for cell in answers(page_of(line(10, LOSSES))))


def test_what_is_given_is_told_from_what_is_made() -> None:
    page = page_of(line(10, LOSSES))

    assert '<td class="number"><span class="muted">0.0500</span></td>' in page
    assert '<td class="number">0.1820</td>' in page


@pytest.mark.parametrize(
    ("smaller", "larger", "words"),
    [
        (0.182, 0.195, "0.182 < 0.195, by 6.7%"),
        (0.345612, 0.345619, "0.345612 < 0.345619, by 0.002%"),
        (0.25, 0.2, "0.250 > 0.200, by 25%"),
        (0.2, 0.2, "0.200000000 = 0.200000000, by 0%"),
        (float("nan"), 0.2, "nan and 0.2 do not compare"),
    ],
)
def test_losses_are_compared_in_as_many_digits_as_it_takes(
    smaller: float, larger: float, words: str
) -> None:
    verdict = Verdict(question="?", modality="video", smaller=smaller, larger=larger)

    assert comparison(verdict) == words


def test_differences_that_may_be_chance_are_not_coloured() -> None:
    close = deepcopy(LOSSES)
    close["a2v"]["video"] = close["svg"]["video"] * 0.9995

    page = page_of(line(10, close))

    assert '<b class="muted">yes</b>: 0.1999 &lt; 0.2000' in page


def test_held_out_losses_are_drawn_from_the_second_validation_on() -> None:
    once, twice = page_of(line(10), line(20, LOSSES)), page_of(line(10, LOSSES), line(20, LOSSES))

    assert "Held-out windows: pictures" not in once
    assert "Held-out windows: pictures" in twice
    assert "Held-out losses at step 20" in once
    for case in ("svg", "a2v", "linear"):
        assert f"<title>{case}: {LOSSES[case]['video']:.4g} at 20</title>" in twice


def test_where_nothing_was_held_out_or_noted_the_page_says_so() -> None:
    assert "No losses on held-out windows were noted" in page_of(line(10), line(20))
    assert "holds no metrics" in page_of()


def test_a_dit_of_other_latents_is_refused(
    reported: Reported, small_kl_vae: Path, tmp_path: Path
) -> None:
    job = make_models(tmp_path, small_kl_vae, mel="audioldm16k").job
    make_dit(tmp_path / "dit", perceptual_recipes(job.settings, job.encoders))

    with pytest.raises(StaleFieldError, match="mel"):
        dit_contents(str(tmp_path / "dit"), reported.level("perceptual"), validation_share=0.1)


def test_metrics_are_read_as_they_were_noted(tmp_path: Path) -> None:
    train = {"step": 10, "video_loss": 0.5}
    path = note(
        tmp_path,
        {"train": train},
        {"train": train | {"step": 20}, "validation": {"losses": LOSSES, "num_windows": 8}},
    )

    lines = read_metrics(path)

    assert lines is not None
    assert [found.step for found in lines] == [10, 20]
    assert last_held_out(lines) == (20, HeldOut(losses=LOSSES, num_windows=8))
    assert read_metrics(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"train": {}}', '{"train": {"step": "x"}}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = note(tmp_path, {"train": {"step": 10}})
    path.write_text(path.read_text() + text + "\n")

    with pytest.raises(ModelError, match=r"metrics.jsonl, line 2, is no line of metrics"):
        read_metrics(path)


def test_a_running_mean_keeps_what_does_not_change_and_its_length() -> None:
    assert running_mean([2.0] * 100) == [2.0] * 100
    # Two neighbours to either side of 80 values, and fewer at the ends.
    means = running_mean([float(value) for value in range(80)])
    assert (means[0], means[1], means[40], means[79]) == (1.0, 1.5, 40.0, 78.0)


def test_the_page_has_what_the_bundled_dit_was_measured_to_do() -> None:
    losses = json.loads((BUNDLED_DIT / "measured.json").read_text())["held_out"]["losses"]

    page = page_of(line(10, LOSSES))

    for case, modality in (("a2v", "video"), ("v2a", "audio"), ("linear", "video")):
        assert f"{losses[case][modality]:.5f}" in page
