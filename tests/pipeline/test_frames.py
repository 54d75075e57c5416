"""Fitting pictures to square frames, and turning them upright."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipeline.frames import Orientation, fit_picture

WHITE = 255


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), WHITE, np.uint8)


def shown_box(frame: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is not padding, exclusive at the end."""
    rows, columns = np.nonzero(frame[0])
    return (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (64, 128, (16, 48, 0, 64)),
        (128, 64, (0, 64, 16, 48)),
        (50, 50, (0, 64, 0, 64)),
        (33, 64, (15, 48, 0, 64)),
        (1, 500, (31, 32, 0, 64)),
    ],
)
def test_letterbox_centres_the_picture_with_the_odd_row_below(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    frame = fit_picture(white(height, width), size=64, fit="letterbox")

    assert frame.shape == (3, 64, 64)
    assert shown_box(frame) == box
    assert frame.flags.c_contiguous


def test_crop_fills_the_frame_with_the_centre() -> None:
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = WHITE

    frame = fit_picture(picture, size=40, fit="crop")

    np.testing.assert_array_equal(frame, WHITE)


@pytest.mark.parametrize(("aspect", "box"), [((1, 2), (0, 64, 16, 48)), ((2, 1), (16, 48, 0, 64))])
def test_letterbox_shows_pixels_that_are_not_square_in_their_shape(
    aspect: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    frame = fit_picture(white(64, 64), size=64, fit="letterbox", pixel_aspect=Fraction(*aspect))

    assert shown_box(frame) == box


def test_crop_shows_pixels_that_are_not_square_in_their_shape() -> None:
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[20:40] = WHITE

    # Displayed 180 wide and 60 high: the square in the centre is 20 stored columns wide.
    wide = fit_picture(picture, size=60, fit="crop", pixel_aspect=Fraction(3))

    np.testing.assert_array_equal(wide[0], picture[..., 0])


def test_a_picture_of_the_right_size_is_kept_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    frame = fit_picture(picture, size=64, fit="letterbox")

    np.testing.assert_array_equal(frame.transpose(1, 2, 0), picture)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = WHITE

    frame = fit_picture(stripes, size=32, fit="letterbox")

    # Without a widened filter the stripes come out black or white; half a step is rounding.
    assert np.abs(frame[:, :, 2:-2].astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ([1, 0, 0, 0, 1], [[1, 2, 3], [4, 5, 6]]),
        ([-1, 0, 0, 0, -1], [[6, 5, 4], [3, 2, 1]]),
        ([0, -1, 0, 1, 0], [[3, 6], [2, 5], [1, 4]]),
        ([0, 1, 0, -1, 0], [[4, 1], [5, 2], [6, 3]]),
        ([-1, 0, 0, 0, 1], [[3, 2, 1], [6, 5, 4]]),
        ([0, 1, 0, 1, 0], [[1, 4], [2, 5], [3, 6]]),
    ],
    ids=["upright", "half turn", "quarter left", "quarter right", "mirrored", "transposed"],
)
def test_display_matrix_turns_and_mirrors(matrix: list[int], wanted: list[list[int]]) -> None:
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None]
    sixteen_sixteen = np.array([*(65536 * x for x in matrix), 0, 0, 0, 1 << 30], np.int32)

    orientation = Orientation.from_display_matrix(sixteen_sixteen.tobytes())

    np.testing.assert_array_equal(orientation.apply(stored)[..., 0], wanted)
