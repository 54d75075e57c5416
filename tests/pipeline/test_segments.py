"""Sample and hold, cutting into segments, and what lies beside sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from latents.clip import ClipSpec
from latents.errors import DecodeError
from pipeline.segments import Picture, cut_segments, hold_pictures, report_progress, sound_span
from pipeline.spans import Span

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


def never_rendered() -> np.ndarray:
    raise AssertionError


def test_a_picture_that_is_not_shown_is_not_rendered() -> None:
    source = [
        Picture(time=Fraction(0), duration=None, render=lambda: frame(1)),
        Picture(time=Fraction(1, 100), duration=None, render=lambda: frame(2)),
        Picture(time=Fraction(11, 100), duration=None, render=never_rendered),
        Picture(time=Fraction(12, 100), duration=Fraction(1, 100), render=never_rendered),
    ]

    shown = [int(picture[0, 0, 0]) for picture in hold_pictures(source, SPEC, source="clip")]

    assert shown == [1, 2]


def test_a_picture_that_steps_back_a_little_is_passed_over() -> None:
    assert held(0, 0.1, 0.05, 0.1, 0.2) == [0, 1, 4]


def test_a_single_picture_that_steps_back_far_is_passed_over() -> None:
    assert held(0, 1, 0.2, 2, 0.3, 3)[::10] == [0, 1, 3, 5]


def shown_until_error(shown: Iterator[np.ndarray | None]) -> tuple[list[int | None], DecodeError]:
    values: list[int | None] = []
    try:
        for picture in shown:
            values.append(None if picture is None else int(picture[0, 0, 0]))
    except DecodeError as error:
        return values, error
    raise AssertionError("no error came")


def test_times_that_start_over_are_an_error_after_what_was_shown_before() -> None:
    source = pictures(0, 0.1, 0.7, 0, 0.1, 0.7, last=None)

    shown, error = shown_until_error(hold_pictures(source, SPEC, source="clip"))

    # The last one is shown for the mean interval, 0.35 s.
    assert shown == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert "its timestamps start over after 0.70 s, at 0.10 s" in str(error)


def test_a_damaged_picture_is_not_shown_nor_rendered() -> None:
    source = pictures(0, 0.1, 0.2, 0.3)
    source[1] = replace(source[1], is_damaged=True, render=never_rendered)

    shown = list(hold_pictures(source, SPEC, source="clip"))

    assert [None if one is None else int(one[0, 0, 0]) for one in shown] == [0, None, 2, 3]


def span_of(start: str, stop: str) -> Span:
    return Span(start_seconds=Decimal(start), stop_seconds=Decimal(stop))


def test_a_span_is_a_grid_of_its_own_from_its_start_to_its_end() -> None:
    thirds = [Fraction(i, 30) for i in range(60)]

    shown = hold_pictures(pictures(*thirds), SPEC, source="clip", span=span_of("0.55", "1.05"))

    # 0.55 s lies between pictures 16 and 17; the one before is held.
    assert [int(picture[0, 0, 0]) for picture in shown] == [16, 19, 22, 25, 28]


def test_nothing_is_asked_for_behind_the_end_of_a_span() -> None:
    def source() -> Iterator[Picture]:
        yield from pictures(0, 0.1, 0.2, Fraction(3, 10))
        raise AssertionError

    shown = hold_pictures(source(), SPEC, source="clip", span=span_of("0.1", "0.3"))

    assert [int(picture[0, 0, 0]) for picture in shown] == [1, 2]


def test_a_span_over_the_end_of_the_pictures_ends_with_them() -> None:
    shown = hold_pictures(pictures(0, 0.1, 0.2), SPEC, source="clip", span=span_of("0.2", "9"))
    beyond = hold_pictures(pictures(0, 0.1, 0.2), SPEC, source="clip", span=span_of("0.3", "9"))

    assert [int(picture[0, 0, 0]) for picture in shown] == [2]
    assert list(beyond) == []


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


@pytest.mark.parametrize(
    ("num_frames", "lengths"), [(99, [99]), (100, [100]), (131, [100, 31]), (199, [100, 99])]
)
def test_what_was_shown_before_an_error_is_cut_as_if_the_source_ended_there(
    num_frames: int, lengths: list[int]
) -> None:
    def breaks_off() -> Iterator[np.ndarray]:
        yield from frames(num_frames)
        raise DecodeError("clip", "damaged")

    segments = cut_segments(breaks_off(), SPEC)

    assert [len(next(segments).frames) for _ in lengths] == lengths
    with pytest.raises(DecodeError):
        next(segments)


def damaged(count: int, *indices: int) -> list[np.ndarray | None]:
    return [None if i in indices else shown for i, shown in enumerate(frames(count))]


def test_a_segment_with_a_damaged_frame_says_from_when_to_when() -> None:
    whole, broken, last = cut_segments(damaged(300, 134, 150, 151), SPEC)

    assert broken.fault == "its pictures are damaged between 13.4 s and 15.2 s"
    assert (broken.number, broken.start_frame, len(broken.frames)) == (1, 100, 0)
    assert (whole.fault, last.fault, last.start_frame) == (None, None, 200)
    np.testing.assert_array_equal(last.frames, np.stack(frames(300)[200:]))


@pytest.mark.parametrize(
    ("index", "faulty"), [(50, [True, False]), (110, [False, True]), (-1, [False])]
)
def test_a_tail_is_not_joined_to_what_only_one_of_them_is(index: int, faulty: list[bool]) -> None:
    segments = cut_segments(damaged(120, index), SPEC)

    assert [segment.fault is not None for segment in segments] == faulty


def test_a_damaged_tail_joins_a_damaged_segment() -> None:
    (segment,) = cut_segments(damaged(120, 99, 119), SPEC)

    assert segment.fault == "its pictures are damaged between 9.9 s and 12.0 s"


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
