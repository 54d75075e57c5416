"""Small models and videos to sample with."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from latents.cache.reader import CachedLevel
from pipeline.write_video import write_video
from tests.evaluation.sampling.small_models import SmallModels, make_models
from tests.pipeline.small_jobs import DecodesInProcess, SmallCache


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, small_kl_vae: Path) -> SmallModels:
    return make_models(tmp_path_factory.mktemp("sampling"), small_kl_vae)


@pytest.fixture(scope="session", autouse=True)
def _decode_in_process() -> Iterator[None]:
    """Starting a child takes longer than what is decoded here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        yield


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of `make_video` with another tone in each ear."""
    path = tmp_path_factory.mktemp("videos") / "tone.mp4"
    make_video(path, np.stack([tone(1.0, 440), tone(1.0, 660)]))
    return path


@pytest.fixture(scope="session")
def late_video(video: Path) -> Path:
    """The same with its sound 0.4 s later, so that its first window begins at frame 4."""
    path = video.with_name("late.mp4")
    with av.open(str(video)) as source, av.open(str(path), "w") as late:
        streams = [late.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.dts is None or packet.pts is None:
                continue
            if packet.stream.type == "audio":
                packet.dts += round(Fraction(2, 5) / packet.time_base)
                packet.pts += round(Fraction(2, 5) / packet.time_base)
            packet.stream = streams[packet.stream.index]
            late.mux(packet)
    return path


@pytest.fixture(scope="session")
def level(
    models: SmallModels, video: Path, late_video: Path, tmp_path_factory: pytest.TempPathFactory
) -> CachedLevel:
    """The perceptual level of the videos and a scene."""
    cache = SmallCache(tmp_path_factory.mktemp("made") / "cache")
    cache.run(models.job, str(video), str(late_video), "scenes:0:1:1")
    return cache.level()


def tone(seconds: float, hertz: float) -> NDArray[np.float32]:
    """A sine at 44.1 kHz, (sample,)."""
    times = np.arange(round(seconds * 44100)) / 44100
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def make_video(path: Path, waveform: NDArray[np.float32] | None, *, num_frames: int = 10) -> None:
    """Red on the left, blue on the right, and a grey stripe that moves down, at 10 fps."""
    frames = np.zeros((num_frames, 64, 64, 3), np.uint8)
    frames[:, :, :32, 0], frames[:, :, 32:, 2] = 220, 220
    for number, frame in enumerate(frames):
        frame[4 * number : 4 * number + 4] = 128
    write_video(path, frames, fps=10, waveform=waveform, sample_rate=44100)
