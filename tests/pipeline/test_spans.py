"""Stretches of a file are named by their numbers, not by how they were written."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pipeline.spans import Span


def span(start: str, stop: str) -> Span:
    return Span(start_seconds=Decimal(start), stop_seconds=Decimal(stop))


def test_equal_numbers_are_one_source_however_they_are_written() -> None:
    assert span("10", "20.50").digest("ab") == span("1E+1", "20.5").digest("ab")
    assert span("10.0", "20.5").of_uri("/a b.mp4") == "/a b.mp4#t=10,20.5"


def test_other_stretches_and_other_files_are_other_sources() -> None:
    digests = {
        span("0", "10").digest("ab"),
        span("0", "10.1").digest("ab"),
        span("0.1", "10").digest("ab"),
        span("0", "10").digest("cd"),
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("start", "stop"), [("-1", "2"), ("2", "2"), ("3", "2"), ("0", "Infinity"), ("0", "1e9")]
)
def test_stretches_that_cannot_be_are_refused(start: str, stop: str) -> None:
    with pytest.raises(ValueError, match="it must begin at 0 or later"):
        span(start, stop)
