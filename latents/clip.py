"""What a clip and a window are, and the one place where the grid is rounded to frames and samples.

Only the timestamps of a media file are rounded elsewhere, by the decoder that reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Fit = Literal["letterbox", "crop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """How a source is laid on the frame grid and cut into clips.

    Frame i of a source is the picture shown at ``start + i / fps`` seconds, where ``start`` is
    the presentation time of its first picture.
    """

    fps: int = 10
    """Frames per second of the grid."""
    segment_seconds: int = 10
    """Length of a clip. Longer sources are cut into several."""
    tail_frames: int = 31
    """A last segment with fewer frames than this joins the one before it (2·16 - 1)."""
    size: int = 256
    """Height and width of a frame, in pixels; a multiple of 8."""
    fit: Fit = "letterbox"
    """``letterbox`` fits the longer side and pads with black, ``crop`` cuts the centre square."""

    def __post_init__(self) -> None:
        if not 1 <= self.fps <= 120:
            raise ValueError(f"clip.fps is {self.fps}; it must be between 1 and 120")
        if self.segment_seconds < 1:
            raise ValueError(f"clip.segment_seconds is {self.segment_seconds}; it must be >= 1")
        if not 0 <= self.tail_frames <= self.segment_frames:
            raise ValueError(
                f"clip.tail_frames is {self.tail_frames}; it must be between 0 and the "
                f"{self.segment_frames} frames of a segment"
            )
        if self.size < 8 or self.size % 8:
            raise ValueError(f"clip.size is {self.size}; it must be a positive multiple of 8")
        if self.fit not in ("letterbox", "crop"):
            raise ValueError(f"clip.fit is {self.fit!r}; it must be 'letterbox' or 'crop'")

    @property
    def segment_frames(self) -> int:
        """Frames of a full segment."""
        return self.fps * self.segment_seconds

    def num_frames(self, duration_seconds: Fraction | float) -> int:
        """Frames whose time lies in [0, duration), forgiving a microsecond of rounding."""
        exact = Fraction(duration_seconds).limit_denominator(10**9) * self.fps
        return max(0, math.ceil(exact - Fraction(self.fps, 10**6)))

    def frame_time(self, frame_index: int) -> Fraction:
        """Seconds from the source's first picture to this frame."""
        return Fraction(frame_index, self.fps)

    def first_sample(self, frame_index: int, sample_rate: int) -> int:
        """Waveform sample at which this frame begins (rounded half up)."""
        return math.floor(Fraction(frame_index * sample_rate, self.fps) + Fraction(1, 2))

    def num_samples(self, num_frames: int, sample_rate: int) -> int:
        """Waveform samples beside ``num_frames`` frames, whatever their position."""
        return self.first_sample(num_frames, sample_rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """A training sample: consecutive frames and the sound beside them."""

    frames: int = 16
    """Frames of a window."""
    stride: int = 4
    """Frames from one window's start to the next one's. It divides ``frames``."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"window.frames is {self.frames}; it must be >= 1")
        if self.stride < 1 or self.frames % self.stride:
            raise ValueError(
                f"window.stride is {self.stride}; it must divide window.frames = {self.frames}, "
                "so that long videos find adjacent windows"
            )

    def grid(self, first_frame: int, stop_frame: int) -> WindowGrid:
        """Windows that lie whole within frames [first_frame, stop_frame) of a clip.

        Starts are multiples of the stride, counted from the clip's first frame.
        """
        first = -(-first_frame // self.stride) * self.stride
        room = stop_frame - self.frames - first
        num_windows = room // self.stride + 1 if room >= 0 else 0
        return WindowGrid(
            frames=self.frames, stride=self.stride, first_frame=first, num_windows=num_windows
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowGrid:
    """The windows of one clip."""

    frames: int
    stride: int
    first_frame: int
    """Start of window 0, in frames of the clip."""
    num_windows: int

    def starts(self) -> Iterator[int]:
        """First frame of each window."""
        return (self.first_frame + self.stride * i for i in range(self.num_windows))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipKey:
    """Identity of a clip: the bytes it was cut from, where, and at which rate."""

    source_digest: str
    """SHA-256 of the source's bytes, 64 hex digits."""
    start_frame: int
    """First frame, counted on the source's frame grid."""
    fps: int

    def __str__(self) -> str:
        return f"{self.source_digest[:32]}-{self.start_frame:08d}-{self.fps}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One decoded segment of a source: the edge between decoding and encoding."""

    key: ClipKey
    source: str
    """URI of the source, for messages."""
    segment: int
    """Number of the segment within its source."""
    frames: NDArray[np.uint8]
    """RGB pictures, (frame, channel = 3, height, width), 0..255."""
    waveform: NDArray[np.float32]
    """Sound beside the frames, (channel, sample), nominally in [-1, 1], at the source's own rate
    and layout; zero where the source has none. It has ``num_samples(len(frames), sample_rate)``
    samples."""
    sample_rate: int
    """Hz."""
    sound_first_frame: int
    """First frame of the clip beside which sound exists."""
    sound_stop_frame: int
    """End (exclusive) of the frames beside which sound exists; equal to the first if none."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(
                f"clip frames must be uint8 (frame, 3, height, width), got "
                f"{self.frames.dtype} {self.frames.shape}"
            )
        if self.waveform.ndim != 2 or self.waveform.dtype != np.float32:
            raise ValueError(
                f"clip waveform must be float32 (channel, sample), got "
                f"{self.waveform.dtype} {self.waveform.shape}"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of pictures and sound held in memory."""
        return self.frames.nbytes + self.waveform.nbytes


def loudness_dbfs(waveform: NDArray[np.float32]) -> float:
    """Root mean square of a waveform (channel, sample) in dB of full scale, at least -120."""
    if waveform.size == 0:
        return -120.0
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    return max(-120.0, 20.0 * math.log10(max(rms, 1e-6)))
