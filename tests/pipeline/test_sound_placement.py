"""Where sound is laid: by timestamps that last, without a seam where they only scatter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sound_placement import (
    LOOK_AHEAD_BLOCKS,
    SEAM_SECONDS,
    PlacedBlock,
    SoundBlock,
    lasting_deviation,
    place_blocks,
    without_false_times,
)

RATE = 10000
SEAM = round(SEAM_SECONDS * RATE)
LENGTH = 200
"""Samples of a block where all are alike: 20 ms, as of Opus."""


def blocks_of(sizes: Sequence[int], stated: Sequence[int | None]) -> list[SoundBlock]:
    """Blocks in which each sample tells its number, counted over all blocks."""
    firsts = accumulate(sizes, initial=0)
    return [
        SoundBlock(samples=np.arange(first, first + size, dtype=np.float32)[None], stated=position)
        for first, size, position in zip(firsts, sizes, stated, strict=False)
    ]


def place(
    sizes: Sequence[int], stated: Sequence[int | None], *, biased_by_length: bool = False
) -> list[PlacedBlock]:
    return list(
        place_blocks(blocks_of(sizes, stated), sample_rate=RATE, biased_by_length=biased_by_length)
    )


def place_alike(stated: Sequence[int | None]) -> list[PlacedBlock]:
    return place([LENGTH] * len(stated), stated)


def steady(count: int, start: int = 0) -> list[int]:
    return [start + LENGTH * number for number in range(count)]


def positions(placed: Sequence[PlacedBlock]) -> list[int]:
    return [block.position for block in placed]


def seams(placed: Sequence[PlacedBlock]) -> list[int]:
    """Samples of silence before each block but the first."""
    return [after.position - before.stop for before, after in pairwise(placed)]


# What is seamless


@given(
    # As far off as any container rounds, and more: half a seam to either side.
    drawn=st.lists(
        st.tuples(st.integers(60, 500), st.integers(-SEAM // 2, SEAM // 2)), min_size=1, max_size=60
    ),
    start=st.integers(-5000, 5000),
)
def test_scattered_stamps_leave_no_seam_and_lose_no_sample(
    drawn: list[tuple[int, int]], start: int
) -> None:
    sizes = [size for size, _ in drawn]
    firsts = accumulate(sizes, initial=start)
    stated = [first + scatter for first, (_, scatter) in zip(firsts, drawn, strict=False)]

    placed = place(sizes, stated)

    assert set(seams(placed)) <= {0}
    assert placed[0].position == stated[0]
    heard = np.concatenate([block.samples for block in placed], axis=1)
    np.testing.assert_array_equal(heard[0], np.arange(sum(sizes)))


@given(
    wrong=st.dictionaries(
        st.integers(0, 5), st.none() | st.integers(-(10**9), 10**9), min_size=1, max_size=6
    )
)
def test_stamps_that_are_wrong_alone_move_nothing(wrong: dict[int, int | None]) -> None:
    # Every ninth at most, so that each look-ahead sees right ones, too.
    stated: list[int | None] = [*steady(60)]
    for number, stamp in wrong.items():
        stated[4 + 9 * number] = stamp

    assert positions(place_alike(stated)) == steady(60)


def test_blocks_without_a_stamp_follow_the_one_before() -> None:
    assert positions(place_alike([1000, None, None])) == [1000, 1200, 1400]
    assert positions(place_alike([None, None])) == [0, 200]


def test_a_first_block_without_a_stamp_ends_where_the_second_is_stated() -> None:
    assert positions(place_alike([None, 1200, 1400])) == [1000, 1200, 1400]


def test_vorbis_blocks_stamped_by_their_ends_are_seamless() -> None:
    # Seen in WebM: 1024, 576 or 128 samples at 44.1 kHz, all stamped 1024 before their end.
    sizes = [1024] * 5 + [576] + [128] * 12 + [576] + [1024] * 40 + [576] + [128] * 20
    stops = list(accumulate(sizes))
    blocks = blocks_of(sizes, [stop - 1024 for stop in stops])

    placed = list(place_blocks(blocks, sample_rate=44100, biased_by_length=True))

    assert positions(placed) == [0, *stops[:-1]]


# What is followed


@pytest.mark.parametrize("num_lost", [1, 2, 3, 50])
def test_what_follows_lost_blocks_stays_where_it_was(num_lost: int) -> None:
    stated = steady(20) + steady(20, start=(20 + num_lost) * LENGTH)

    assert positions(place_alike(stated)) == stated


@pytest.mark.parametrize("num_after", range(1, LOOK_AHEAD_BLOCKS + 2))
def test_a_loss_near_the_end_is_seen(num_after: int) -> None:
    stated = steady(20) + steady(num_after, start=21 * LENGTH)

    assert positions(place_alike(stated)) == stated


def test_blocks_of_a_new_length_behind_a_gap_are_not_taken_for_biased() -> None:
    sizes = [1024] * 20 + [128] * 20
    stated = [1024 * number for number in range(20)]
    stated += [1024 * 20 + 44100 + 128 * number for number in range(20)]

    placed = list(place_blocks(blocks_of(sizes, stated), sample_rate=44100, biased_by_length=True))

    assert positions(placed) == stated


def test_a_wrong_stamp_is_not_taken_for_the_bias_of_a_new_length() -> None:
    sizes = [1024] * 20 + [128] + [1024] * 10 + [128] * 12 + [1024] * 10
    truth = list(accumulate(sizes, initial=0))[:-1]
    stated = [position + (44100 if number == 20 else 0) for number, position in enumerate(truth)]

    placed = list(place_blocks(blocks_of(sizes, stated), sample_rate=44100, biased_by_length=True))

    assert positions(placed) == truth


def test_a_lost_long_block_is_seen_behind_the_bias_of_short_ones() -> None:
    sizes = [1024] * 20 + [576, 128, 128, 576] + [1024] * 20
    stops = [stop + (1024 if number >= 30 else 0) for number, stop in enumerate(accumulate(sizes))]
    blocks = blocks_of(sizes, [stop - 1024 for stop in stops])

    placed = list(place_blocks(blocks, sample_rate=44100, biased_by_length=True))

    assert [block.stop for block in placed] == stops


@given(
    # Whether a block is lost, and how many samples its stamp is off: 1 ms at most.
    drawn=st.lists(
        st.tuples(st.booleans(), st.integers(-RATE // 1000, RATE // 1000)), min_size=2, max_size=80
    ),
    size=st.integers(60, 500),
)
def test_losses_and_rounding_leave_every_block_within_two_seams_of_its_place(
    drawn: list[tuple[bool, int]], size: int
) -> None:
    kept = [(number * size, off) for number, (lost, off) in enumerate(drawn) if not lost]
    truth = [position for position, _ in kept]

    placed = place([size] * len(kept), [position + off for position, off in kept])

    # What is moved back loses its first samples, so that ends tell where blocks lie.
    errors = [block.stop - size - position for block, position in zip(placed, truth, strict=True)]
    assert all(abs(error) <= 2 * SEAM for error in errors)


@given(
    stretch=st.floats(-0.005, 0.005),
    size=st.integers(100, 500),
    count=st.integers(10, 400),
    biased_by_length=st.booleans(),
)
def test_a_clock_that_drifts_is_followed(
    stretch: float, size: int, count: int, biased_by_length: bool
) -> None:
    stated = [round(number * size * (1 + stretch)) for number in range(count)]

    placed = place([size] * count, stated, biased_by_length=biased_by_length)

    errors = [block.stop - size - position for block, position in zip(placed, stated, strict=True)]
    assert max(abs(error) for error in errors) < 1.5 * SEAM


@given(
    drawn=st.lists(
        st.tuples(st.integers(60, 500), st.none() | st.integers(-(10**5), 10**5)),
        min_size=1,
        max_size=60,
    ),
    biased_by_length=st.booleans(),
)
def test_blocks_come_in_order_and_never_overlap(
    drawn: list[tuple[int, int | None]], biased_by_length: bool
) -> None:
    placed = place(
        [size for size, _ in drawn],
        [stated for _, stated in drawn],
        biased_by_length=biased_by_length,
    )

    assert all(seam >= 0 for seam in seams(placed))
    heard = np.concatenate([block.samples[0] for block in placed])
    assert (np.diff(heard) > 0).all()


def test_what_is_stated_to_lie_before_the_end_is_dropped() -> None:
    # Time starts over for a second: half of it has been heard already.
    stated = steady(20) + steady(20, start=10 * LENGTH)

    placed = place_alike(stated)

    assert positions(placed) == steady(30)
    assert placed[20].samples[0, 0] == 30 * LENGTH


def test_an_overlap_cuts_the_front_of_the_later_block() -> None:
    stated = [0, *steady(20, start=LENGTH - 2 * SEAM)]

    placed = place_alike(stated)

    assert placed[1].position == LENGTH
    np.testing.assert_array_equal(placed[1].samples[0], np.arange(LENGTH + 2 * SEAM, 2 * LENGTH))
    assert positions(placed)[2:] == stated[2:]


def test_sparse_sound_lies_at_its_own_stamps() -> None:
    stated = [5000 * number for number in range(30)]

    assert positions(place_alike(stated)) == stated


def test_no_more_than_the_look_ahead_is_asked_for() -> None:
    asked: list[int] = []

    def blocks() -> Iterator[SoundBlock]:
        for number, block in enumerate(blocks_of([LENGTH] * 100, steady(100))):
            asked.append(number)
            yield block

    for _ in islice(place_blocks(blocks(), sample_rate=RATE), 20):
        pass

    assert len(asked) == 19 + LOOK_AHEAD_BLOCKS


# The decision


def test_deviations_on_both_sides_or_within_the_seam_do_not_last() -> None:
    assert lasting_deviation([], SEAM) == 0
    assert lasting_deviation([60, 70, -60, 80], SEAM) == 0
    assert lasting_deviation([200, 200, 50, 200], SEAM) == 0


def test_a_move_is_by_the_middle_of_the_deviations_nearest_to_zero() -> None:
    assert lasting_deviation([210, 190, 200, 400, 400, 400], SEAM) == 200
    assert lasting_deviation([-400, -210, -190, -200], SEAM) == -200


# Containers without timestamps


def test_made_up_stamps_that_fit_the_first_blocks_are_kept() -> None:
    blocks = blocks_of([LENGTH] * 40, steady(20) + steady(20, start=23 * LENGTH))

    assert list(without_false_times(blocks, sample_rate=RATE)) == blocks


def test_made_up_stamps_that_do_not_fit_are_dropped_but_for_the_first() -> None:
    # Seen in AVI: each block said to last a hundredth of what it does.
    blocks = blocks_of([LENGTH] * 40, [700 + 2 * number for number in range(40)])

    believed = list(without_false_times(blocks, sample_rate=RATE))

    assert [block.stated for block in believed] == [700] + [None] * 39
    assert all(
        ours.samples is theirs.samples for ours, theirs in zip(believed, blocks, strict=True)
    )
