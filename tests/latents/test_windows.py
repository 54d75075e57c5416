"""A window's number leads to its clip, and arrays to fill are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.cache.windows import WindowIndex, WindowShapes, room_for

SHAPES: WindowShapes = {"a": ((2, 3), np.dtype(np.float16)), "b": ((), np.dtype(np.uint8))}


def index_of(*num_windows: int) -> WindowIndex:
    keys = [f"clip {clip}" for clip in range(len(num_windows))]
    return WindowIndex(np.array(keys, np.bytes_), np.array(num_windows))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_windows_are_numbered_clip_after_clip(num_windows: list[int]) -> None:
    index = index_of(*num_windows)
    places = [(clip, number) for clip, count in enumerate(num_windows) for number in range(count)]

    clips, numbers = index.find(np.arange(index.num_windows))

    assert list(zip(clips.tolist(), numbers.tolist(), strict=True)) == places
    assert [index.place(w) for w in range(index.num_windows)] == [
        (f"clip {clip}", number) for clip, number in places
    ]
    assert np.concatenate(
        [index.windows_of(clip) for clip in range(len(num_windows))]
    ).tolist() == list(range(index.num_windows))


def test_windows_are_found_in_any_order_and_more_than_once() -> None:
    clips, numbers = index_of(2, 3).find(np.array([4, 0, 4]))
    assert (clips.tolist(), numbers.tolist()) == ([1, 0, 1], [2, 0, 2])


@pytest.mark.parametrize("window", [-1, 5])
def test_a_window_that_is_not_there_is_an_error(window: int) -> None:
    index = index_of(2, 3)
    with pytest.raises(IndexError, match="there are 5 windows"):
        index.find(np.array([0, window]))
    with pytest.raises(IndexError, match="there are 5 windows"):
        index.place(window)


def test_a_hundred_million_windows_of_a_million_clips_are_found_at_once() -> None:
    index = WindowIndex(np.zeros(10**6, "S44"), np.full(10**6, 100))
    windows = np.random.default_rng(0).integers(0, 10**8, 10_000)

    clips, numbers = index.find(windows)

    np.testing.assert_array_equal(clips, windows // 100)
    np.testing.assert_array_equal(numbers, windows % 100)


def test_new_arrays_have_the_shapes_asked_for() -> None:
    room = room_for(4, SHAPES, None)
    assert {name: (array.shape, array.dtype) for name, array in room.items()} == {
        "a": ((4, 2, 3), np.float16),
        "b": ((4,), np.uint8),
    }


def test_arrays_that_are_given_are_the_ones_that_are_filled() -> None:
    given_arrays = {"a": np.empty((4, 2, 3), np.float16), "b": np.empty(4, np.uint8)}
    room = room_for(4, SHAPES, given_arrays)
    assert all(room[name] is given_arrays[name] for name in SHAPES)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, r"out\['b'\] is missing; wanted uint8 \(4,\)"),
        (np.empty(5, np.uint8), r"out\['b'\] is uint8 \(5,\); wanted uint8 \(4,\)"),
        (np.empty(4, np.int8), r"out\['b'\] is int8 \(4,\); wanted uint8"),
        (np.empty(8, np.uint8)[::2], "must be contiguous and writable"),
        (np.frombuffer(b"abcd", np.uint8), "must be contiguous and writable"),
    ],
)
def test_arrays_that_cannot_be_filled_are_refused(array: np.ndarray | None, message: str) -> None:
    out = {"a": np.empty((4, 2, 3), np.float16)} | ({} if array is None else {"b": array})
    with pytest.raises(ValueError, match=message):
        room_for(4, SHAPES, out)
