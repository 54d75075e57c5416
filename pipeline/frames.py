"""Fitting pictures of any size, shape and orientation to the square frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latents.clip import Fit

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """How a stored picture is turned for display: transpose first, then mirror."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    @classmethod
    def from_display_matrix(cls, matrix: bytes) -> Orientation:
        """Reads a display matrix; angles between quarter turns go to the nearest one.

        Args:
            matrix: Nine int32 in native byte order, row by row, that send stored (column, row) to
                displayed (column, row) (ISO/IEC 14496-12, 8.3.2; libavutil's ``display.h``).
        """
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, mirror_columns=c < 0, mirror_rows=b < 0)
        return cls(mirror_columns=a < 0, mirror_rows=d < 0)

    def apply(self, picture: Pixels) -> Pixels:
        """A view of ``(height, width, channel)`` as it is to be seen."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.mirror_columns:
            picture = picture[:, ::-1]
        if self.mirror_rows:
            picture = picture[::-1]
        return picture


def fit_picture(
    picture: Pixels, *, size: int, fit: Fit, pixel_aspect: Fraction = Fraction(1)
) -> Pixels:
    """A picture as a square frame.

    Resampling is Pillow's bicubic, whose filter widens when it shrinks (antialiasing).

    Args:
        picture: RGB ``(height, width, 3)``, 0..255.
        size: Height and width of the frame.
        fit: ``letterbox`` shows the whole picture, centred on black (an odd pixel of padding goes
            to the bottom or right). ``crop`` fills the frame with the picture's centre.
        pixel_aspect: Width of a stored pixel over its height (sample aspect ratio).

    Returns:
        RGB ``(3, size, size)``, 0..255, contiguous.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    width, height = image.width * pixel_aspect, Fraction(image.height)
    if fit == "crop":
        side = min(width, height)
        margin_x, margin_y = (width - side) / pixel_aspect / 2, (height - side) / 2
        box = (margin_x, margin_y, image.width - margin_x, image.height - margin_y)
        square = image.resize((size, size), Image.Resampling.BICUBIC, box=_floats(box))
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    ratio = min(size / width, size / height)
    shown = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    frame = np.zeros((3, size, size), np.uint8)
    left, top = (size - shown[0]) // 2, (size - shown[1]) // 2
    resized = np.asarray(image.resize(shown, Image.Resampling.BICUBIC))
    frame[:, top : top + shown[1], left : left + shown[0]] = resized.transpose(2, 0, 1)
    return frame


def _floats(box: tuple[Fraction, ...]) -> tuple[float, float, float, float]:
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom
