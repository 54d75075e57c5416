"""ClipSpec and WindowSpec: every rounding of time to frames and samples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.clip import Clip, ClipKey, ClipSpec, WindowGrid, WindowSpec, loudness_dbfs

TEN_FPS = ClipSpec(fps=10)
rates = st.integers(1, 120)


@pytest.mark.parametrize(
    ("duration", "num_frames"),
    [
        (0, 0),
        (10, 100),
        (Fraction(1, 10), 1),
        (Fraction(101, 1000), 2),
        (Fraction(99, 1000), 1),
        (1.6, 16),  # a float a little above 8/5
        (0.30000000000000004, 3),
        (10.0000001, 100),
        (10.00001, 101),
    ],
)
def test_frames_are_those_whose_time_lies_before_the_end(
    duration: Fraction | float, num_frames: int
) -> None:
    assert TEN_FPS.num_frames(duration) == num_frames


@pytest.mark.parametrize(
    ("num_pictures", "num_frames"),
    # n pictures at 30000/1001 per second last n · 1001/30000 s.
    [(300, 101), (299, 100), (30, 11), (29, 10), (1, 1)],
)
def test_ntsc_lengths_are_not_rounded_to_whole_frames(num_pictures: int, num_frames: int) -> None:
    assert TEN_FPS.num_frames(Fraction(num_pictures * 1001, 30000)) == num_frames


@given(fps=rates, num_frames=st.integers(0, 100_000))
def test_a_whole_number_of_frames_lasts_just_so_many(fps: int, num_frames: int) -> None:
    spec = ClipSpec(fps=fps, tail_frames=0)

    assert spec.num_frames(spec.frame_time(num_frames)) == num_frames
    assert spec.num_frames(num_frames / fps) == num_frames  # whatever a float makes of it


def test_frame_times_are_exact() -> None:
    assert ClipSpec(fps=30, tail_frames=31).frame_time(7) == Fraction(7, 30)


@pytest.mark.parametrize(
    ("frame", "sample_rate", "fps", "sample"),
    [
        (16, 22050, 10, 35280),
        (1, 22050, 10, 2205),
        (1, 22050, 4, 5513),  # 5512.5, rounded half up
        (3, 22050, 4, 16538),  # 16537.5
        (1, 16000, 30, 533),
        (2, 16000, 30, 1067),
    ],
)
def test_a_frame_begins_at_the_nearest_sample_rounded_half_up(
    frame: int, sample_rate: int, fps: int, sample: int
) -> None:
    assert ClipSpec(fps=fps, tail_frames=0).first_sample(frame, sample_rate) == sample


@given(fps=rates, sample_rate=st.integers(120, 192_000), frame=st.integers(0, 10**7))
def test_samples_never_go_back_and_never_drift(fps: int, sample_rate: int, frame: int) -> None:
    spec = ClipSpec(fps=fps, tail_frames=0)
    here, there = (spec.first_sample(f, sample_rate) for f in (frame, frame + 1))

    assert here < there
    assert abs(here - Fraction(frame * sample_rate, fps)) <= Fraction(1, 2)


@given(fps=rates, sample_rate=st.integers(120, 192_000), start=st.integers(0, 10**5))
def test_a_window_has_as_many_samples_wherever_it_starts(
    fps: int, sample_rate: int, start: int
) -> None:
    spec = ClipSpec(fps=fps, tail_frames=0)
    wanted = spec.num_samples(16, sample_rate)

    between = spec.first_sample(start + 16, sample_rate) - spec.first_sample(start, sample_rate)
    assert abs(between - wanted) <= 1


@pytest.mark.parametrize(
    ("stride", "first_frame", "stop_frame", "starts"),
    [
        (4, 0, 16, [0]),
        (4, 0, 15, []),
        (4, 0, 0, []),
        (4, 0, 24, [0, 4, 8]),
        (4, 0, 27, [0, 4, 8]),  # sound ends early
        (4, 1, 24, [4, 8]),  # sound begins late: starts stay on multiples of the stride
        (4, 4, 24, [4, 8]),
        (4, 5, 24, [8]),
        (16, 0, 100, [0, 16, 32, 48, 64, 80]),
        (1, 3, 20, [3, 4]),
    ],
)
def test_windows_lie_where_picture_and_sound_both_are(
    stride: int, first_frame: int, stop_frame: int, starts: list[int]
) -> None:
    grid = WindowSpec(frames=16, stride=stride).grid(first_frame, stop_frame)

    assert list(grid.starts()) == starts
    assert grid.num_windows == len(starts)


def test_a_clip_of_100_frames_has_85_windows_at_stride_1() -> None:
    grid = WindowSpec(frames=16, stride=1).grid(0, 100)

    assert grid == WindowGrid(frames=16, stride=1, first_frame=0, num_windows=85)


@st.composite
def window_specs(draw: st.DrawFn) -> WindowSpec:
    stride = draw(st.integers(1, 16))
    return WindowSpec(frames=stride * draw(st.integers(1, 8)), stride=stride)


@given(spec=window_specs(), first=st.integers(0, 200), length=st.integers(0, 300))
def test_no_window_leaves_the_span_and_none_is_missing(
    spec: WindowSpec, first: int, length: int
) -> None:
    stop = first + length

    starts = list(spec.grid(first, stop).starts())

    fitting = range(first, stop - spec.frames + 1)
    assert starts == [frame for frame in fitting if frame % spec.stride == 0]


@given(spec=window_specs(), length=st.integers(0, 300))
def test_adjacent_windows_tile_the_clip(spec: WindowSpec, length: int) -> None:
    starts = list(spec.grid(0, length).starts())

    adjacent = starts[:: spec.frames // spec.stride]
    assert adjacent == list(range(0, length - spec.frames + 1, spec.frames))


def test_the_text_of_a_key_names_source_position_and_rate() -> None:
    key = ClipKey(source_digest="ab" * 32, start_frame=100, fps=10)

    assert str(key) == f"{'ab' * 16}-00000100-10"


def test_keys_of_different_clips_have_different_texts() -> None:
    keys = [
        ClipKey(source_digest=digest * 64, start_frame=start, fps=fps)
        for digest in "ab"
        for start in (0, 100)
        for fps in (4, 10)
    ]

    assert len({str(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 0}, "clip.fps is 0; it must be between 1 and 120"),
        ({"fps": 121}, "clip.fps is 121"),
        ({"segment_seconds": 0}, "clip.segment_seconds is 0"),
        ({"tail_frames": 101}, "clip.tail_frames is 101; it must be between 0 and the 100 frames"),
        ({"size": 250}, "clip.size is 250; it must be a positive multiple of 8"),
        ({"fit": "stretch"}, "clip.fit is 'stretch'"),
    ],
)
def test_a_clip_that_cannot_be_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSpec(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("frames", "stride"), [(0, 1), (16, 0), (16, 5), (16, 32)])
def test_a_stride_divides_the_window(frames: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"window\.(frames|stride) is"):
        WindowSpec(frames=frames, stride=stride)


def decoded(
    frames: tuple[int, ...], waveform: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> Clip:
    return Clip(
        key=ClipKey(source_digest="a" * 64, start_frame=0, fps=10),
        source="a.mp4",
        segment=0,
        frames=np.zeros(frames, dtype=np.uint8),
        waveform=waveform,
        sample_rate=44100,
        sound_first_frame=0,
        sound_stop_frame=1,
    )


def test_num_bytes_is_what_a_clip_holds_in_memory() -> None:
    assert decoded((2, 3, 8, 8), np.zeros((2, 10), np.float32)).num_bytes == 2 * 3 * 64 + 80


def test_frames_and_waveform_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(frame, 3, height, width\)"):
        decoded((2, 8, 8, 3), np.zeros((2, 10), np.float32))
    with pytest.raises(ValueError, match=r"float32 \(channel, sample\)"):
        decoded((2, 3, 8, 8), np.zeros(10, np.float32))


def test_loudness_is_the_root_mean_square_in_decibels_of_full_scale() -> None:
    square = np.tile(np.array([1, -1], np.float32), (2, 50))

    assert loudness_dbfs(square) == pytest.approx(0)
    assert loudness_dbfs(square / np.float32(10)) == pytest.approx(-20, abs=1e-6)  # float32 tenths
    assert loudness_dbfs(np.zeros_like(square)) == -120
    assert loudness_dbfs(np.zeros((1, 0), np.float32)) == -120
