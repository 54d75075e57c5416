"""Opus sound: what was said is heard, where it was said, at every bit rate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.scenes.catalogue import SCENE_LABELS, make_scene

av = pytest.importorskip("av")
pyav_audio = pytest.importorskip("pipeline.pyav_audio")

RATE = 48000
PACKET = 960
"""Samples; 20 ms."""
NUM_PACKETS = 100
NUM_SAMPLES = NUM_PACKETS * PACKET - 500
"""With the samples that lead in, the last packet is not full and has to be cut."""
LEAD_IN = 312
"""Samples before the first that is to be heard, of libopus's encoder."""
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
FIRST_CELT = 16
"""Of the 32 configurations in a packet's first five bits; those before are for speech."""


def noise(num_channels: int = 1) -> np.ndarray:
    """Float32 (channel, sample), each channel another noise, most of it below 3 kHz."""
    rng = np.random.default_rng(0)
    white = rng.normal(0, 0.3, (num_channels, NUM_SAMPLES + 15))
    return np.stack([np.convolve(row, np.ones(16) / 16, "valid") for row in white]).astype("f4")


def bird_song() -> np.ndarray:
    """Two seconds of whistles between 2 and 4 kHz, one channel."""
    return make_scene(7, SCENE_LABELS.index("bird"), seconds=2).waveform(RATE)[:1]


def write_opus(path: Path, sound: np.ndarray, *, bits_per_second: int) -> Path:
    """A file that holds nothing but Opus, in the container that its suffix names."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout=LAYOUTS[len(sound)])
        stream.codec_context.bit_rate = bits_per_second
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound), format="fltp", layout=LAYOUTS[len(sound)]
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def replace_packets(path: Path, wanted: range, content: bytes) -> Path:
    """A copy in which other bytes stand for some packets."""
    copy = path.with_stem("damaged")
    with av.open(str(path)) as read, av.open(str(copy), "w") as written:
        stream = written.add_stream_from_template(read.streams[0])
        for number, packet in enumerate(read.demux()):
            if not packet.size:
                continue
            placed = av.Packet(content) if number in wanted else packet
            placed.pts, placed.dts, placed.time_base = packet.pts, packet.dts, packet.time_base
            placed.stream = stream
            written.mux(placed)
    return copy


def hear(path: Path, num_samples: int = NUM_SAMPLES + 2 * PACKET) -> tuple[np.ndarray, np.ndarray]:
    """Sound (channel, sample) from time zero on, and where there is some (sample)."""
    with pyav_audio.open_sound(str(path), source=path.name, start_time=Fraction(0)) as sound:
        assert sound is not None
        assert sound.sample_rate == RATE
        return sound.read(0, num_samples)


def likeness(heard: np.ndarray, said: np.ndarray, lag: int = 0) -> float:
    """Correlation of one channel with what was said `lag` samples earlier."""
    margin = 1000
    ours = heard[margin + lag : said.size - margin + lag]
    return float(np.corrcoef(ours, said[margin:-margin])[0, 1])


@pytest.fixture
def without_libopus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = pyav_audio.Codec
    monkeypatch.setattr(pyav_audio, "Codec", lambda _, mode: known("no such codec", mode))
    pyav_audio._libopus.cache_clear()
    yield
    pyav_audio._libopus.cache_clear()


@pytest.mark.parametrize("bits_per_second", [16000, 24000, 48000])
def test_whistles_taken_for_speech_are_heard_as_they_were(
    tmp_path: Path, bits_per_second: int
) -> None:
    said = bird_song()
    path = write_opus(tmp_path / "bird.webm", said, bits_per_second=bits_per_second)
    assert all(packet[0] >> 3 < FIRST_CELT for packet in packets_of(path))

    heard, _ = hear(path)

    # Opus moves speech by up to three samples.
    assert max(likeness(heard[0], said[0], lag) for lag in range(-3, 4)) > 0.98
    assert np.abs(heard).max() < 1.3 * np.abs(said).max()


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".ogg", ".mp4"])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_sound_lies_where_it_was_to_the_sample(
    tmp_path: Path, suffix: str, num_channels: int
) -> None:
    said = noise(num_channels)
    path = write_opus(tmp_path / f"noise{suffix}", said, bits_per_second=128000 * num_channels)

    heard, present = hear(path)

    for ours, theirs in zip(heard, said, strict=True):
        assert max(range(-3, 4), key=lambda lag: likeness(ours, theirs, lag)) == 0
        assert likeness(ours, theirs) > 0.99
    # FFmpeg does not write into an MP4 how much of the last packet to leave out.
    stop = NUM_PACKETS * PACKET - LEAD_IN if suffix == ".mp4" else NUM_SAMPLES
    np.testing.assert_array_equal(np.flatnonzero(present), np.arange(stop))


def test_channels_of_surround_sound_keep_their_order(tmp_path: Path) -> None:
    hertz = [300, 200, 250, 50, 150, 400]  # the fourth is for low sounds alone
    times = np.arange(NUM_SAMPLES) / RATE
    said = np.stack([0.2 * np.sin(2 * np.pi * tone * times) for tone in hertz]).astype(np.float32)
    path = write_opus(tmp_path / "surround.mkv", said, bits_per_second=384000)

    heard, _ = hear(path)

    assert [round(likeness(ours, theirs), 2) for ours, theirs in zip(heard, said, strict=True)] == [
        1.0
    ] * 6


def test_sound_beyond_full_scale_is_not_cut_off(tmp_path: Path) -> None:
    square = np.sign(np.sin(2 * np.pi * 441 * np.arange(NUM_SAMPLES) / RATE))
    path = write_opus(
        tmp_path / "loud.webm", 0.99 * square[None].astype(np.float32), bits_per_second=96000
    )

    heard, _ = hear(path)

    assert np.abs(heard).max() > 1.02


def test_packets_that_are_no_opus_leave_a_gap(tmp_path: Path) -> None:
    said = noise()
    whole = write_opus(tmp_path / "noise.mp4", said, bits_per_second=128000)
    no_frames = b"\x03\x00"  # a packet of zero frames, which there cannot be

    heard, present = hear(replace_packets(whole, range(30, 40), no_frames))

    missing = np.flatnonzero(~present[:NUM_SAMPLES])
    np.testing.assert_array_equal(missing, np.arange(30 * PACKET, 40 * PACKET) - LEAD_IN)
    np.testing.assert_array_equal(heard[0, missing], 0)
    after = 45 * PACKET
    assert likeness(heard[0, after:], said[0, after:]) > 0.99


def test_the_decoder_of_ffmpeg_agrees_where_sound_was_not_taken_for_speech(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = write_opus(tmp_path / "noise.webm", noise(2), bits_per_second=256000)
    ours, our_presence = hear(path)
    request.getfixturevalue("without_libopus")

    theirs, their_presence = hear(path)

    np.testing.assert_array_equal(our_presence, their_presence)
    # Of real sound they differed by up to 0.004; libopus is then within 2e-7 of opusdec.
    np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.mark.usefixtures("without_libopus")
def test_without_libopus_the_decoder_of_ffmpeg_is_used_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = noise()
    path = write_opus(tmp_path / "noise.webm", said, bits_per_second=128000)

    with caplog.at_level(logging.WARNING):
        heard = [hear(path)[0] for _ in range(2)]

    np.testing.assert_array_equal(heard[0], heard[1])
    assert likeness(heard[0][0], said[0]) > 0.99
    (message,) = caplog.messages
    assert "no libopus" in message
