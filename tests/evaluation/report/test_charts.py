"""Curves as SVG: where they lie, what is left out, and their axes."""

from __future__ import annotations

import re

import pytest

from evaluation.report.charts import Curve, line_chart, log_ticks
from evaluation.report.figures import histogram


def curve(*points: tuple[float, float], is_faint: bool = False) -> Curve:
    return Curve(name="<svg> loss", style="video", points=points, is_faint=is_faint)


def places(chart: str) -> list[tuple[float, float]]:
    """Where the first line of a chart goes."""
    (path, *_) = re.findall(r'class="line[^"]*" d="M([^"]+)"', chart)
    return [tuple(map(float, place.split())) for place in path.split("L")]  # type: ignore[misc]


def test_equal_ratios_are_equal_distances() -> None:
    (_, high), (middle, centre), (_, low) = places(
        line_chart([curve((0, 10), (50, 1), (100, 0.1))], x_label="step", y_label="loss")
    )

    assert centre == pytest.approx((high + low) / 2, abs=0.1)
    assert high < centre < low
    assert middle == pytest.approx((44 + 410) / 2, abs=0.1)


def test_what_is_not_finite_or_not_above_zero_is_not_drawn() -> None:
    chart = line_chart(
        [curve((1, 0.5), (2, float("nan")), (3, float("inf")), (4, 0.0), (5, 0.25))],
        x_label="step",
        y_label="loss",
    )

    assert len(places(chart)) == 2
    assert "nan" not in chart


def test_nothing_to_draw_is_said() -> None:
    chart = line_chart([curve((1, float("nan")))], x_label="step", y_label="loss")

    assert "Nothing to draw" in chart
    assert "<svg" not in chart


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = [(float(step), 1 / step) for step in range(1, 20_001)]

    drawn = places(line_chart([curve(*points)], x_label="step", y_label="loss"))

    assert len(drawn) == 400
    assert drawn[-1][0] == pytest.approx(410)


def test_faint_curves_are_not_in_the_legend_and_names_are_escaped() -> None:
    chart = line_chart(
        [curve((1, 1), (2, 2), is_faint=True), curve((1, 1), (2, 2))], x_label="s", y_label="l"
    )

    assert chart.count("&lt;svg&gt; loss</span>") == 1
    assert "<svg> loss" not in chart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.09, 1.1, [0.1, 0.2, 0.5, 1]),
        (0.31, 0.42, [0.32, 0.34, 0.36, 0.38, 0.4, 0.42]),
        (1e-6, 1.0, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("high", [1.0, 1.02, 3.9, 4.0, 17.0, 1e3, 1e9, 1e30])
def test_there_are_one_to_seven_ticks_within_any_range(high: float) -> None:
    ticks = log_ticks(1.0, high)

    assert 1 <= len(ticks) <= 7
    assert 1.0 - 1e-9 <= ticks[0] <= ticks[-1] <= high * (1 + 1e-9)


def test_bars_say_what_they_count() -> None:
    assert "<title>2 windows, 1 to " in histogram([1.0, 1.0, 1.5], unit="of it", of="windows")
