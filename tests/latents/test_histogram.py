"""Histograms have round edges, count every value once, and can be read as text."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from latents.cache.histogram import MAX_BINS, Histogram, histogram_lines, histogram_of

NAN = float("nan")


def histogram(*values: float) -> Histogram:
    found = histogram_of(np.array(values, np.float64), title="clip length", unit="frames")
    assert found is not None
    return found


def test_values_are_counted_between_round_edges() -> None:
    found = histogram(0.0, 0.5, 1.5, 2.0, 9.5)

    assert found.edges == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert found.counts == (2, 1, 1, 0, 0, 0, 0, 0, 0, 1)


def test_a_value_on_an_edge_is_counted_above_it() -> None:
    found = histogram(0.1, 0.2, 0.3)  # 0.3 is less than 3 / 10 in binary

    assert found.edges == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
    assert [found.edges[i] for i, count in enumerate(found.counts) if count] == [0.1, 0.2, 0.3]


def test_equal_whole_numbers_are_one_bin() -> None:
    found = histogram(100, 100, 100)

    assert (found.edges, found.counts) == ((100, 101), (3,))
    assert (found.minimum, found.median, found.maximum) == (100, 100, 100)


def test_bins_of_whole_numbers_are_not_narrower_than_one() -> None:
    assert histogram(3, 5).edges == (3, 4, 5, 6)


def test_negative_values_are_counted_too() -> None:
    found = histogram(-25.5, -20.5, -20.5, -14.5)

    assert (found.edges[0], found.edges[-1]) == (-26, -14)
    assert sum(found.counts) == 4


def test_smallest_middle_and_largest_value_are_told() -> None:
    found = histogram(7, 1, 2, 30)

    assert (found.minimum, found.median, found.maximum) == (1, 4.5, 30)


def test_values_that_were_not_given_are_counted_apart() -> None:
    found = histogram(1, NAN, 2, NAN, float("inf"))

    assert (sum(found.counts), found.num_absent) == (2, 3)


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_there_is_none_of_no_values(values: list[float]) -> None:
    assert histogram_of(np.array(values, np.float64), title="loudness", unit="dBFS") is None


@pytest.mark.parametrize("seed", range(40))
def test_every_value_is_in_one_of_a_few_bins_of_one_width(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-6, 12)
    values = generator.normal(generator.normal(), generator.exponential(), 200) * scale
    found = histogram(*values)

    assert 1 <= len(found.counts) <= MAX_BINS
    counts, _ = np.histogram(values, found.edges)
    assert found.counts == tuple(counts.tolist())
    assert sum(found.counts) == 200
    assert min(found.counts[0], found.counts[-1]) > 0
    np.testing.assert_allclose(np.diff(found.edges), np.diff(found.edges)[0], rtol=1e-6)


def test_a_histogram_is_json() -> None:
    found = histogram(1, 2)

    assert json.loads(json.dumps(asdict(found))) == {
        "title": "clip length",
        "unit": "frames",
        "edges": [1.0, 2.0, 3.0],
        "counts": [1, 1],
        "minimum": 1.0,
        "median": 1.5,
        "maximum": 2.0,
        "num_absent": 0,
    }


def test_a_histogram_is_drawn_with_bars_and_counts() -> None:
    values = [1.0] * 1600 + [2.0] * 800 + [3.0] + [NAN] * 2

    assert histogram_lines(histogram(*values), width=4) == [
        "clip length (frames): min 1, median 1, max 3, 2 without",
        "  1 - 2  ████  1,600",
        "  2 - 3  ██      800",
        "  3 - 4  ▏         1",
    ]


def test_bars_are_drawn_in_eighths_and_nothing_is_drawn_as_nothing() -> None:
    lines = histogram_lines(histogram(*[1.0] * 16, *[2.0] * 3, 4.0), width=2)

    assert [line.split("  ")[2].strip() for line in lines[1:]] == ["██", "▍", "", "▏"]


def test_large_numbers_are_drawn_with_a_letter() -> None:
    lines = histogram_lines(histogram(220e6, 240e6), width=1)

    assert lines[0].startswith("clip length (frames): min 220M, median 230M, max 240M")
    assert lines[1].startswith("  220M - 225M  █")


def test_edges_that_four_digits_do_not_tell_apart_are_given_whole() -> None:
    lines = histogram_lines(histogram(5.0, 5.00001), width=1)

    assert lines[1].startswith("       5.0 - 5.000002")
    assert lines[-1].startswith("   5.00001 - 5.000012")
