"""Videos each of whose frames shows its own number, in several codecs, containers and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

NUM_BITS = 12
FPS = 30
QUICK: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12"},
}
"""Options of encoders that else take long; there are B-frames and the like all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberedVideo:
    """How one is made."""

    codec: str
    """An encoder of FFmpeg."""
    suffix: str
    """Of its container."""
    size: tuple[int, int]
    """Height and width."""
    num_frames: int
    is_uneven: bool = False
    """Whether frames are shown for one or three thirtieths of a second in turn."""

    @property
    def name(self) -> str:
        """For the table of figures."""
        uneven = ", uneven" if self.is_uneven else ""
        return f"{self.codec} {self.suffix} {self.size[1]}x{self.size[0]}{uneven}"

    def shown_at(self, index: int) -> int:
        """When a frame is shown first, in thirtieths of a second."""
        return 2 * index - index % 2 if self.is_uneven else index

    def number_at(self, seconds: float) -> int:
        """Which frame is to be seen at a time."""
        ticks = int(seconds * FPS + 1e-6)
        if not self.is_uneven:
            return min(ticks, self.num_frames - 1)
        return min(ticks // 4 * 2 + (ticks % 4 >= 1), self.num_frames - 1)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.shown_at(self.num_frames) / FPS


def write_numbered(video: NumberedVideo, path: Path) -> None:
    """Encodes it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video.codec, rate=FPS, options=QUICK.get(video.codec, {}))
        stream.height, stream.width = video.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, FPS)
        for index, pixels in enumerate(numbered_frames(video)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = video.shown_at(index), Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbered_frames(video: NumberedVideo) -> Iterator[NDArray[np.uint8]]:
    """Pictures (height, width, 3) with detail that moves, and the number's bits at the top."""
    height, width = video.size
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(columns / 9) + np.sin(rows / 7 + columns / 31)
    background = np.repeat((128 + 40 * waves)[..., None], 3, axis=2).astype(np.uint8)
    for index in range(video.num_frames):
        pixels = np.roll(background, (index, 2 * index), axis=(0, 1))
        for bit, block in enumerate(_blocks(height, width)):
            pixels[block] = 235 if index >> bit & 1 else 20
        yield pixels


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number that a picture (height, width, 3) of any size shows."""
    blocks = _blocks(*pixels.shape[:2])
    return sum(int(pixels[block].mean() > 128) << bit for bit, block in enumerate(blocks))


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    """Where the bits are: the middle of twelfths of the upper quarter."""
    edges = np.linspace(0, width, NUM_BITS + 1).astype(int)
    return [(slice(0, height // 4), slice(left, right)) for left, right in pairwise(edges.tolist())]
