"""Written videos: what goes in comes out, at the same time, with the same bytes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.write_video import write_video

SAMPLE_RATE = 44100


def smooth_frames(num_frames: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """Gradients that change from frame to frame, (frame, height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        frames[i, ..., 0] = 40 + 150 * x / width
        frames[i, ..., 1] = 40 + 150 * y / height
        frames[i, ..., 2] = 60 + 100 * i / max(num_frames - 1, 1)
    return frames


def click(seconds: float, at_seconds: float, num_channels: int = 2) -> NDArray[np.float32]:
    """Silence with a decaying tone at one time."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE - at_seconds
    tone = np.where(times >= 0, np.sin(5000 * times) * np.exp(-np.maximum(times, 0) / 0.03), 0)
    return np.tile(0.7 * tone.astype(np.float32), (num_channels, 1))


def read_pictures(path: Path) -> tuple[NDArray[np.uint8], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.time) for frame in frames if frame.time is not None]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times


def read_sound(path: Path) -> tuple[NDArray[np.float32], float]:
    """Waveform (channel, sample) and the time of its first sample."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), float(
        frames[0].time or 0
    )


def test_pictures_come_back_in_number_time_and_colour(tmp_path: Path) -> None:
    frames = smooth_frames(12)
    path = tmp_path / "clip.mp4"
    write_video(path, frames, fps=20, waveform=None, sample_rate=SAMPLE_RATE)

    pictures, times = read_pictures(path)

    assert pictures.shape == frames.shape
    assert times == pytest.approx([i / 20 for i in range(12)], abs=1e-4)
    # crf 18 on gradients: the mean error is about one level.
    assert np.abs(pictures.astype(int) - frames).mean() < 2.5


def test_pictures_and_sound_begin_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    frames = smooth_frames(20)
    write_video(path, frames, fps=10, waveform=click(2.0, 0.5), sample_rate=SAMPLE_RATE)

    waveform, sound_start = read_sound(path)
    _, times = read_pictures(path)
    onset = int(np.argmax(np.abs(waveform[0]) > 0.1)) / SAMPLE_RATE

    assert times[0] == 0
    assert sound_start == 0
    assert onset == pytest.approx(0.5, abs=0.005)  # a third of an AAC frame


@pytest.mark.parametrize("num_channels", [1, 2])
def test_sound_comes_back_in_channels_and_length(tmp_path: Path, num_channels: int) -> None:
    path = tmp_path / "clip.mp4"
    sound = click(1.3, 0.2, num_channels)
    write_video(path, smooth_frames(13), fps=10, waveform=sound, sample_rate=SAMPLE_RATE)

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.channels == num_channels
        assert stream.rate == SAMPLE_RATE
        seconds = float(stream.duration * stream.time_base)  # type: ignore[operator]  # mp4 has both

    assert seconds == pytest.approx(1.3, abs=1024 / SAMPLE_RATE)


def test_a_file_without_sound_has_no_audio_stream(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_frames(3), fps=10, waveform=None, sample_rate=SAMPLE_RATE)

    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(
            tmp_path / name,
            smooth_frames(10),
            fps=10,
            waveform=click(1.0, 0.3),
            sample_rate=SAMPLE_RATE,
        )

    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_small_pictures_give_equal_bytes_every_time(tmp_path: Path) -> None:
    # x264's default lookahead gave several results in 16 runs at this size.
    path = tmp_path / "clip.mp4"
    frames = smooth_frames(8, 96, 96)
    frames[:, 30:60, 30:60] = np.arange(0, 240, 30, dtype=np.uint8)[:, None, None, None]
    written = set()
    for _ in range(16):
        write_video(path, frames, fps=10, waveform=None, sample_rate=SAMPLE_RATE)
        written.add(path.read_bytes())

    assert len(written) == 1


def test_the_index_lies_before_the_media(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_frames(5), fps=10, waveform=None, sample_rate=SAMPLE_RATE)
    content = path.read_bytes()

    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_odd_sizes_are_padded_with_the_edge(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    frames = smooth_frames(3, 33, 47)
    write_video(path, frames, fps=10, waveform=None, sample_rate=SAMPLE_RATE)

    pictures, _ = read_pictures(path)

    assert pictures.shape[1:3] == (34, 48)
    assert np.abs(pictures[:, :33, :47].astype(int) - frames).mean() < 3


def test_no_frames_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "clip.mp4", [], fps=10, waveform=None, sample_rate=SAMPLE_RATE)

    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_frames(3), fps=10, waveform=None, sample_rate=SAMPLE_RATE)
    before = path.read_bytes()
    frames = [*smooth_frames(3), *smooth_frames(1, 32, 32)]

    with pytest.raises(ValueError, match="of the size of the first"):
        write_video(path, frames, fps=10, waveform=None, sample_rate=SAMPLE_RATE)

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("waveform", "sample_rate", "message"),
    [
        (np.zeros((3, 100), np.float32), SAMPLE_RATE, "1 or 2 channels"),
        (np.zeros(100, np.float32), SAMPLE_RATE, "1 or 2 channels"),
        (np.zeros((2, 100), np.float32), 12345, "no sample rate of 12345"),
    ],
)
def test_sound_that_aac_cannot_hold_is_refused(
    tmp_path: Path, waveform: NDArray[np.float32], sample_rate: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(
            tmp_path / "clip.mp4",
            smooth_frames(2),
            fps=10,
            waveform=waveform,
            sample_rate=sample_rate,
        )


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_video(
            tmp_path / "missing" / "clip.mp4",
            smooth_frames(2),
            fps=10,
            waveform=None,
            sample_rate=SAMPLE_RATE,
        )
