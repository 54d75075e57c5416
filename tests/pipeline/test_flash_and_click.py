"""Flash and click come out at the time at which they were put in, whatever lies in between."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latents.clip import ClipSpec, WindowSpec
from latents.errors import DecodeError
from pipeline.decode import (
    DecodeEvent,
    SegmentRejected,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
    decode_source,
)

pytest.importorskip("av")

from tests.pipeline.flash_and_click import (
    Recording,
    click_times,
    damage_sound_packets,
    drop_sound_packets,
    flash_times,
    write_recording,
)

SPEC = ClipSpec(size=32, segment_seconds=30)
FRAME_SECONDS = 1 / SPEC.fps
CLICK_SECONDS = 0.010
"""How far off a click may be."""
AVI_CODEC_DELAY_SECONDS = 0.024
"""Encoders put samples before the first that is to be heard, 1105 in MP3 and 1024 in AAC, 481 in
MP2. Other containers say so; AVI cannot, and players hear the click that much late."""
BACKENDS = ["decord", "pyav"]

X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=15:min-keyint=15:bframes=3:scenecut=0"}
VPX = {"deadline": "realtime", "cpu-used": "8"}
PRORES = Recording(
    suffix=".mov", video_codec="prores_ks", pixel_format="yuv422p10le", audio_codec="pcm_s24le"
)
RECORDINGS = {
    "mp4-h264-aac": Recording(suffix=".mp4"),
    "mp4-h264-mp3-22k": Recording(suffix=".mp4", audio_codec="libmp3lame", sample_rate=22050),
    "mp4-hevc-alac": Recording(
        suffix=".mp4", video_codec="libx265", video_options=X265, audio_codec="alac"
    ),
    "mp4-av1-opus": Recording(
        suffix=".mp4",
        video_codec="libsvtav1",
        video_options={"preset": "12"},
        audio_codec="libopus",
    ),
    "mp4-fragmented": Recording(
        suffix=".mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4-edit-list": Recording(suffix=".mp4", stated_offset_seconds=-0.7),
    "mp4-sound-late": Recording(suffix=".mp4", sound_start_seconds=0.5),
    "mp4-sound-early": Recording(suffix=".mp4", sound_start_seconds=-0.5),
    "mp4-film-rate": Recording(suffix=".mp4", picture_rate=Fraction(24000, 1001)),
    "3gp-h263-aac-8k": Recording(
        suffix=".3gp", video_codec="h263", sample_rate=8000, layout="mono"
    ),
    "mov-prores-pcm": PRORES,
    "mov-prores-pcm-96k": replace(PRORES, sample_rate=96000),
    "mkv-h264-ac3": Recording(suffix=".mkv", audio_codec="ac3"),
    "mkv-h264-flac-96k": Recording(suffix=".mkv", audio_codec="flac", sample_rate=96000),
    "mkv-hevc-flac-44k": Recording(
        suffix=".mkv",
        video_codec="libx265",
        video_options=X265,
        audio_codec="flac",
        sample_rate=44100,
    ),
    "mkv-open-gop": Recording(suffix=".mkv", video_options=OPEN_GOP),
    "mkv-from-100-s": Recording(suffix=".mkv", stated_offset_seconds=100),
    "mkv-sound-late": Recording(suffix=".mkv", sound_start_seconds=0.5),
    "mkv-sound-early": Recording(suffix=".mkv", sound_start_seconds=-0.5),
    "webm-vp8-opus": Recording(
        suffix=".webm", video_codec="libvpx", video_options=VPX, audio_codec="libopus"
    ),
    "webm-vp9-opus": Recording(
        suffix=".webm", video_codec="libvpx-vp9", video_options=VPX, audio_codec="libopus"
    ),
    "webm-vp8-vorbis": Recording(
        suffix=".webm",
        video_codec="libvpx",
        video_options=VPX,
        audio_codec="vorbis",
        audio_options={"strict": "experimental"},
    ),
    "ts-h264-aac": Recording(suffix=".ts"),
    "ts-open-gop": Recording(suffix=".ts", video_options=OPEN_GOP),
    "ts-from-100-s": Recording(suffix=".ts", stated_offset_seconds=100),
    "ts-sound-late": Recording(suffix=".ts", sound_start_seconds=0.5),
    "ts-sound-early": Recording(suffix=".ts", sound_start_seconds=-0.5),
    "m2ts-mpeg2-ac3": Recording(
        suffix=".m2ts",
        video_codec="mpeg2video",
        audio_codec="ac3",
    ),
    "mpg-mpeg2-mp2": Recording(suffix=".mpg", video_codec="mpeg2video", audio_codec="mp2"),
    "flv-h264-aac-44k": Recording(suffix=".flv", sample_rate=44100),
    "flv-sorenson-mp3-44k": Recording(
        suffix=".flv", video_codec="flv", audio_codec="libmp3lame", sample_rate=44100
    ),
    "avi-mpeg4-pcm": Recording(suffix=".avi", video_codec="mpeg4", audio_codec="pcm_s16le"),
    "avi-h264-pcm": Recording(suffix=".avi", audio_codec="pcm_s16le"),
    "avi-h264-flac": Recording(suffix=".avi", audio_codec="flac"),
}
AVI_RECORDINGS_WITH_DELAY = {
    "mpeg4-mp3": Recording(suffix=".avi", video_codec="mpeg4", audio_codec="libmp3lame"),
    "h264-mp3": Recording(suffix=".avi", video_options={"bf": "0"}, audio_codec="libmp3lame"),
    "reordered-h264-mp3": Recording(suffix=".avi", audio_codec="libmp3lame"),
    "mpeg4-aac": Recording(suffix=".avi", video_codec="mpeg4"),
    "mpeg4-mp2": Recording(suffix=".avi", video_codec="mpeg4", audio_codec="mp2"),
}
LOSSY = {
    "mp4-aac": Recording(suffix=".mp4"),
    "mp4-mp3": Recording(suffix=".mp4", audio_codec="libmp3lame"),
    "mkv-aac": Recording(suffix=".mkv"),
    "mkv-ac3": Recording(suffix=".mkv", audio_codec="ac3"),
    "mkv-flac": Recording(suffix=".mkv", audio_codec="flac"),
    "mkv-pcm": Recording(suffix=".mkv", audio_codec="pcm_s16le"),
    "webm-opus": RECORDINGS["webm-vp8-opus"],
    "webm-vorbis": RECORDINGS["webm-vp8-vorbis"],
    "ts-aac": Recording(suffix=".ts"),
    "mpg-mp2": RECORDINGS["mpg-mpeg2-mp2"],
    "flv-aac": Recording(suffix=".flv"),
}

DAMAGED = {
    "avi-mp3": AVI_RECORDINGS_WITH_DELAY["mpeg4-mp3"],
    "avi-aac": AVI_RECORDINGS_WITH_DELAY["mpeg4-aac"],
    "avi-mp2": AVI_RECORDINGS_WITH_DELAY["mpeg4-mp2"],
    "avi-ac3": Recording(suffix=".avi", video_codec="mpeg4", audio_codec="ac3"),
    "mp4-aac": Recording(suffix=".mp4"),
    "mkv-flac": Recording(suffix=".mkv", audio_codec="flac"),
}
LONG = Recording(
    suffix=".mp4",
    video_codec="mpeg4",
    picture_rate=Fraction(2),
    audio_options={"aac_coder": "fast"},
    sample_rate=16000,
    layout="mono",
    seconds=600,
    event_seconds=(1.5, 300.5, 598),
)


def decode(path: Path, backend: str = "pyav", spec: ClipSpec = SPEC) -> list[DecodeEvent]:
    task = SourceTask(uri=path.name, path=str(path), scene=None, digest="0" * 64)
    return list(
        decode_source(
            task, clip_spec=spec, window_spec=WindowSpec(), sound=SoundPolicy(), backend=backend
        )
    )


def observe(path: Path, num_events: int, backend: str = "pyav") -> tuple[list[float], list[float]]:
    """Seconds from the first picture to each flash and to each click."""
    *clips, end = decode(path, backend)
    assert isinstance(end, SourceDecoded)
    frames = np.concatenate([clip.frames for clip in clips])
    waveform = np.concatenate([clip.waveform for clip in clips], axis=1)
    return (
        flash_times(frames, SPEC.fps),
        click_times(waveform, clips[0].sample_rate, num_clicks=num_events),
    )


def check(path: Path, recording: Recording, backend: str = "pyav") -> None:
    """Fails unless flashes and clicks are where they were put."""
    truth = recording.shown_event_seconds
    flashes, clicks = observe(path, len(truth), backend)
    assert flashes == pytest.approx(truth, abs=FRAME_SECONDS + 1e-9)
    assert clicks == pytest.approx(truth, abs=CLICK_SECONDS)


@pytest.mark.parametrize("name", RECORDINGS)
def test_flash_and_click_are_where_they_were_put(tmp_path: Path, name: str) -> None:
    path = write_recording(tmp_path / f"video{RECORDINGS[name].suffix}", RECORDINGS[name])

    for backend in BACKENDS:
        check(path, RECORDINGS[name], backend)


@pytest.mark.parametrize("name", AVI_RECORDINGS_WITH_DELAY)
def test_clicks_in_avi_are_late_by_the_codecs_delay_at_most(tmp_path: Path, name: str) -> None:
    recording = AVI_RECORDINGS_WITH_DELAY[name]
    path = write_recording(tmp_path / "video.avi", recording)

    flashes, clicks = observe(path, len(recording.event_seconds))

    # AVI has no place for a picture between two others: those behind the first may be one late.
    assert flashes == pytest.approx(recording.event_seconds, abs=FRAME_SECONDS + 1e-9)
    delays = np.subtract(clicks, recording.event_seconds)
    assert ((delays > 0) & (delays < AVI_CODEC_DELAY_SECONDS)).all()
    # A delay and no drift.
    assert np.ptp(delays) < 0.001


@pytest.mark.parametrize("name", LOSSY)
def test_a_click_behind_lost_packets_stays_where_it_was(tmp_path: Path, name: str) -> None:
    recording = LOSSY[name]
    path = write_recording(tmp_path / f"video{recording.suffix}", recording)

    for count in (1, 2, 3):
        check(drop_sound_packets(path, from_seconds=2, count=count), recording)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_click_behind_damaged_packets_stays_where_it_was(tmp_path: Path, name: str) -> None:
    recording = DAMAGED[name]
    path = write_recording(tmp_path / f"video{recording.suffix}", recording)

    _, whole = observe(path, len(recording.event_seconds))
    _, damaged = observe(
        damage_sound_packets(path, from_seconds=2, count=3), len(recording.event_seconds)
    )

    assert damaged == pytest.approx(whole, abs=0.001)


@pytest.mark.parametrize("stretch", [Fraction(-1, 1000), Fraction(1, 1000)])
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_sound_by_a_clock_that_drifts_stays_beside_its_pictures(
    tmp_path: Path, codec: str, stretch: Fraction
) -> None:
    # The second click would be 18 ms off, were the clock not followed.
    recording = Recording(
        suffix=".mkv",
        audio_codec=codec,
        picture_rate=Fraction(10),
        seconds=20,
        event_seconds=(1.2, 18.4),
        sound_clock=1 + stretch,
    )
    path = write_recording(tmp_path / "drift.mkv", recording)

    check(path, recording)


@pytest.mark.slow
def test_nothing_has_drifted_after_ten_minutes(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "long.mp4", LONG)

    for backend in BACKENDS:
        check(path, LONG, backend)


@pytest.mark.slow
def test_a_clock_that_drifts_for_ten_minutes_is_followed(tmp_path: Path) -> None:
    # The sound's clock is 0.6 s late in the end.
    recording = replace(LONG, sound_clock=Fraction(1001, 1000))

    check(write_recording(tmp_path / "drift.mp4", recording), recording)


# What is refused


@pytest.mark.parametrize("rate", [200, 900_000])
def test_sound_at_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    recording = Recording(suffix=".mkv", audio_codec="pcm_s16le", sample_rate=rate, seconds=2)
    path = write_recording(tmp_path / "absurd.mkv", replace(recording, event_seconds=()))

    rejected, end = decode(path)

    assert isinstance(rejected, SegmentRejected)
    assert (rejected.segment, type(rejected.error)) == (None, DecodeError)
    assert f"{rate} samples a second; 1000 to 768000 are accepted" in str(rejected.error)
    assert end == SourceDecoded(num_segments=0)


def test_sound_that_changes_its_rate_is_kept_up_to_there(tmp_path: Path) -> None:
    first = Recording(suffix=".ts")
    second = Recording(suffix=".ts", stated_offset_seconds=4, sample_rate=32000)
    path = tmp_path / "joined.ts"
    path.write_bytes(
        write_recording(tmp_path / "first.ts", first).read_bytes()
        + write_recording(tmp_path / "second.ts", second).read_bytes()
    )

    *clips, rejected, end = decode(path, spec=replace(SPEC, segment_seconds=2, tail_frames=15))

    assert [clip.segment for clip in clips] == [0, 1]
    assert clips[1].sound_stop_frame == 20
    assert isinstance(rejected, SegmentRejected)
    assert rejected.segment == 2
    assert "changes from 48000 Hz and 2 channels to 32000 Hz" in str(rejected.error)
    assert end == SourceDecoded(num_segments=3)
