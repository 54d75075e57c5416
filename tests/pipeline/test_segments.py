"""Sample and hold, cutting into segments, and what lies beside sound."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from latents.clip import ClipSpec
from latents.errors import DecodeError
from pipeline.segments import Picture, cut_segments, hold_pictures, report_progress, sound_span

SPEC = ClipSpec(fps=10, segment_seconds=10, tail_frames=31, size=8)


def frame(value: int) -> np.ndarray:
    return np.full((3, 8, 8), value, np.uint8)


def frames(count: int) -> list[np.ndarray]:
    return [frame(i % 256) for i in range(count)]


def pictures(*times: Fraction | float, last: Fraction | None = None) -> list[Picture]:
    """Picture i shows the value i."""
    return [
        Picture(
            time=Fraction(time),
            duration=last if i == len(times) - 1 else None,
            render=lambda i=i: frame(i),
        )
        for i, time in enumerate(times)
    ]


def held(*times: Fraction | float, last: Fraction | None = None) -> list[int]:
    shown = hold_pictures(pictures(*times, last=last), SPEC, source="clip")
    return [int(picture[0, 0, 0]) for picture in shown]


def test_each_frame_shows_the_last_picture_that_is_not_later() -> None:
    thirds = [Fraction(i, 30) for i in range(30)]

    assert held(*thirds) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]


def test_a_slow_source_repeats_its_pictures() -> None:
    assert held(0, Fraction(1, 4), Fraction(1, 2)) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_uneven_times_are_followed_not_averaged() -> None:
    assert held(0, 0.05, 0.31, 0.32, 0.33, 0.6, last=Fraction(1, 10)) == [0, 1, 1, 1, 4, 4, 5]


@pytest.mark.parametrize(("late_by", "wanted"), [("0.0000005", 1), ("0.00001", 0)])
def test_a_picture_late_by_rounding_is_on_time(late_by: str, wanted: int) -> None:
    assert held(0, Fraction("0.1") + Fraction(late_by), 0.5)[1] == wanted


def test_the_last_picture_lasts_as_long_as_it_says() -> None:
    assert held(0, Fraction(1, 10), last=Fraction(3, 10)) == [0, 1, 1, 1]


@pytest.mark.parametrize("said", [None, Fraction(0), Fraction(97391)])
def test_a_last_picture_of_no_or_absurd_duration_lasts_the_mean_interval(
    said: Fraction | None,
) -> None:
    assert held(0, Fraction(1, 10), Fraction(2, 10), last=said) == [0, 1, 2]


def test_a_picture_that_is_not_shown_is_not_rendered() -> None:
    def never() -> np.ndarray:
        raise AssertionError

    source = [
        Picture(time=Fraction(0), duration=None, render=lambda: frame(1)),
        Picture(time=Fraction(1, 100), duration=None, render=lambda: frame(2)),
        Picture(time=Fraction(11, 100), duration=None, render=never),
        Picture(time=Fraction(12, 100), duration=Fraction(1, 100), render=never),
    ]

    shown = [int(picture[0, 0, 0]) for picture in hold_pictures(source, SPEC, source="clip")]

    assert shown == [1, 2]


def test_a_picture_that_steps_back_a_little_is_passed_over() -> None:
    assert held(0, 0.1, 0.05, 0.1, 0.2) == [0, 1, 4]


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_jump_in_time_is_damage(jump: float) -> None:
    with pytest.raises(DecodeError, match=r"jump from 5\.00 s"):
        held(0, 5, 5 + jump)


@pytest.mark.parametrize(
    ("num_frames", "lengths"),
    [
        (1, [1]),
        (100, [100]),
        (130, [130]),
        (131, [100, 31]),
        (200, [100, 100]),
        (230, [100, 130]),
        (231, [100, 100, 31]),
    ],
)
def test_a_short_tail_joins_the_segment_before_it(num_frames: int, lengths: list[int]) -> None:
    segments = list(cut_segments(frames(num_frames), SPEC))

    assert [len(segment.frames) for segment in segments] == lengths
    assert [segment.start_frame for segment in segments] == [100 * i for i in range(len(lengths))]
    assert [segment.number for segment in segments] == list(range(len(lengths)))
    whole = np.concatenate([segment.frames for segment in segments])
    np.testing.assert_array_equal(whole, np.stack(frames(num_frames)))


@pytest.mark.parametrize(("tail_frames", "lengths"), [(0, [100, 100, 1]), (100, [100, 101])])
def test_the_shortest_tail_is_a_setting(tail_frames: int, lengths: list[int]) -> None:
    spec = ClipSpec(tail_frames=tail_frames, size=8)

    assert [len(segment.frames) for segment in cut_segments(frames(201), spec)] == lengths


def test_no_more_than_a_segment_and_its_tail_is_held() -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield frame(0)

    segments = cut_segments(endless(), SPEC)
    next(segments)
    next(segments)

    assert taken == 231


@pytest.mark.parametrize(("num_frames", "complete"), [(99, 0), (100, 1), (131, 1), (199, 1)])
def test_segments_complete_before_an_error_are_given_first(num_frames: int, complete: int) -> None:
    def breaks_off() -> Iterator[np.ndarray]:
        yield from frames(num_frames)
        raise DecodeError("clip", "damaged")

    segments = cut_segments(breaks_off(), SPEC)

    assert [len(next(segments).frames) for _ in range(complete)] == [100] * complete
    with pytest.raises(DecodeError):
        next(segments)


def test_progress_is_reported_for_each_clip_length_of_frames() -> None:
    calls: list[int] = []

    list(report_progress(frames(250), SPEC, lambda: calls.append(1)))

    assert len(calls) == 2


def span(present: np.ndarray, num_frames: int, rate: int = 1000) -> range:
    return sound_span(present, num_frames=num_frames, sample_rate=rate, clip_spec=SPEC)


def test_a_frame_needs_sound_for_half_of_its_interval() -> None:
    present = np.ones(2000, np.bool_)
    present[:150] = False
    present[1950:] = False

    assert span(present, 20) == range(1, 20)
    present[149:151] = [False, False]
    present[1949] = False
    assert span(present, 20) == range(2, 19)


def test_of_two_runs_the_longer_counts_and_of_equals_the_first() -> None:
    present = np.ones(2000, np.bool_)
    present[500:700] = False
    assert span(present, 20) == range(7, 20)

    present[:] = True
    present[900:1100] = False
    assert span(present, 20) == range(0, 9)


def test_without_sound_the_span_is_empty() -> None:
    assert len(span(np.zeros(2000, np.bool_), 20)) == 0


def test_a_rate_that_does_not_divide_is_no_hindrance() -> None:
    spec = ClipSpec(fps=7)
    present = np.ones(spec.num_samples(30, 11025), np.bool_)

    assert sound_span(present, num_frames=30, sample_rate=11025, clip_spec=spec) == range(30)
