"""Decoding real videos: what cameras, films and broken files do that made-up ones do not."""

from __future__ import annotations

import csv
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from latents.clip import Clip, ClipSpec, WindowSpec, loudness_dbfs
from latents.errors import (
    ClipError,
    DecodeError,
    MissingSoundError,
    SilentSoundError,
    TooShortError,
)
from pipeline.decode import (
    DecodeEvent,
    SegmentRejected,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
    decode_source,
)

av = pytest.importorskip("av")
fit_picture = pytest.importorskip("pipeline.frames").fit_picture

CLIPS = Path(__file__).resolve().parents[2].parent / "shared" / "clips"
pytestmark = pytest.mark.skipif(
    not (CLIPS / "manifest.csv").exists(), reason=f"the real clips are not at {CLIPS}"
)
SPEC, WINDOW = ClipSpec(), WindowSpec()
PHONE = "awkward/aw_vfr_rot180_fire.mp4"
QUICK = ["good/shaka_sintel_small.mp4", "good/shaka_tos_seg.ts", "good/bbb_astiav_180p.mp4"]

PICTURE_SECONDS = {"good/nasa_13013.mp4": 13.01}
"""Where the container's duration is that of something else, here of the subtitles."""

AWKWARD: dict[str, list[int | type[ClipError]]] = {
    # What each gives, segment by segment: the windows of a clip, or why it gives none.
    "aw_12fps_silent_face.mp4": [12],
    "aw_422_pixfmt.mp4": [2],
    "aw_51ch_1080p60.mp4": [2],
    "aw_51ch_bbb_720p.mp4": [10],
    "aw_audio_only.mp4": [DecodeError],
    # 1.2 s of picture and 0.8 s of sound; a window is 1.6 s.
    "aw_audio_shorter.mp4": [TooShortError],
    "aw_bear_odd_161x121.webm": [MissingSoundError],
    # The picture starts 1.0 s after the sound: 9.0 s remain.
    "aw_editlist_positive_shift.mp4": [19],
    # The header claims 40 hours; there is 1.0 s.
    "aw_fragmented_bad_duration.mp4": [TooShortError],
    # 15.5 s of picture: 10 s and a tail of 5.5.
    "aw_fragmented_rooftop.mp4": [22, 10],
    "aw_h263_aac8k_mono.3gp": [9],
    # No picture decodes; that there is no sound either comes second.
    "aw_invalid_vp9.webm": [DecodeError],
    # An audio track of unknown codec is none.
    "aw_missing_stsd.mp4": [MissingSoundError],
    "aw_near_silent_paper_rot90.mp4": [TooShortError],
    "aw_no_audio_av1.mkv": [MissingSoundError],
    "aw_no_duration.webm": [9],
    "aw_noaudio_water.mp4": [MissingSoundError],
    "aw_rot90_51ch_bbb.mp4": [1],
    "aw_sar_2by3.mp4": [2],
    "aw_silent_audio_dog.mp4": [21],
    "aw_silent_audio_flower.webm": [9],
    "aw_startpts_firstpts10s_noaudio.mp4": [MissingSoundError],
    # 5.0 s are whole, with 4.5 s of sound; the picture behind them is cut in two.
    "aw_truncated_mid_mdat.mp4": [8, DecodeError],
    "aw_truncated_no_moov.mp4": [DecodeError],
    "aw_vfr_rot180_fire.mp4": [2],
    "aw_zero_bytes.mp4": [DecodeError],
}

QUIET = {
    # Loudness of each clip in dBFS; -120 is the least that is told.
    "aw_12fps_silent_face.mp4": [-120],
    "aw_editlist_positive_shift.mp4": [-120],
    "aw_h263_aac8k_mono.3gp": [-60.5],
    "aw_no_duration.webm": [-120],
    "aw_silent_audio_dog.mp4": [-120],
    "aw_silent_audio_flower.webm": [-120],
}


@cache
def manifest() -> dict[str, dict[str, str]]:
    with (CLIPS / "manifest.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def good_names() -> list[str]:
    return sorted(f"good/{path.name}" for path in (CLIPS / "good").glob("*"))


def decode(
    name: str,
    *,
    backend: str = "decord",
    sound: SoundPolicy | None = None,
    spec: ClipSpec = SPEC,
    window: WindowSpec = WINDOW,
) -> list[DecodeEvent]:
    path = str(CLIPS / name)
    return list(
        decode_source(
            SourceTask(uri=path, path=path, scene=None, digest="0" * 64),
            clip_spec=spec,
            window_spec=window,
            sound=sound or SoundPolicy(),
            backend=backend,
        )
    )


def clips_of(events: list[DecodeEvent]) -> list[Clip]:
    return [event for event in events if isinstance(event, Clip)]


def expect_good(name: str) -> None:
    """A good file's clips are what the manifest says, which ffprobe wrote."""
    row = manifest()[name]
    events = decode(name)
    clips = clips_of(events)
    num_frames = sum(len(clip.frames) for clip in clips)

    assert events == [*clips, SourceDecoded(num_segments=len(clips))]
    assert all(clip.frames.shape[1:] == (3, 256, 256) for clip in clips)
    # The container's duration counts from time zero, and the sound where that is longer.
    seconds = PICTURE_SECONDS.get(name, float(row["duration_s"]))
    assert num_frames / 10 == pytest.approx(seconds, abs=0.25)
    for clip in clips:
        assert clip.waveform.shape == (
            int(row["audio_channels"]),
            SPEC.num_samples(len(clip.frames), clip.sample_rate),
        )
        assert clip.sound_stop_frame >= len(clip.frames) - 2
        assert clip.sound_first_frame == 0
        assert len(np.unique(clip.frames)) > 100
    heard = np.concatenate([clip.waveform for clip in clips], axis=1)
    # ffmpeg's volumedetect, over the whole stream and rounded.
    assert loudness_dbfs(heard) == pytest.approx(float(row["audio_mean_db"]), abs=1.0)


@pytest.mark.parametrize("name", QUICK)
def test_a_few_good_videos_give_all_their_clips(name: str) -> None:
    expect_good(name)


def test_a_real_clip_shorter_than_a_window_is_too_short() -> None:
    rejected, end = decode("good/openl3_bento.mp4")

    assert isinstance(rejected, SegmentRejected)
    assert isinstance(rejected.error, TooShortError)
    assert rejected.segment is None
    assert end == SourceDecoded(num_segments=1)


@pytest.mark.slow
def test_all_good_videos_but_the_short_one_are_accepted() -> None:
    names = good_names()
    for name in names:
        if name != "good/openl3_bento.mp4":
            expect_good(name)

    assert len(names) == 36


def num_windows(clip: Clip) -> int:
    return WINDOW.grid(clip.sound_first_frame, clip.sound_stop_frame).num_windows


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_each_awkward_file_gives_what_is_expected_of_it(backend: str) -> None:
    outcomes: dict[str, list[int | type[ClipError]]] = {}
    quiet = {}
    for path in sorted((CLIPS / "awkward").glob("*")):
        *events, end = decode(f"awkward/{path.name}", backend=backend)
        assert isinstance(end, SourceDecoded)
        outcomes[path.name] = [
            num_windows(event) if isinstance(event, Clip) else type(event.error) for event in events
        ]
        reasons = [event.error.reason for event in events if isinstance(event, SegmentRejected)]
        assert all(0 < len(reason) < 300 for reason in reasons)
        loudness = [loudness_dbfs(clip.waveform) for clip in clips_of(events)]
        if loudness and max(loudness) < -60:
            quiet[path.name] = [pytest.approx(dbfs, abs=0.5) for dbfs in loudness]

    assert outcomes == AWKWARD
    assert quiet == QUIET


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["aw_near_silent_paper_rot90.mp4", "aw_h263_aac8k_mono.3gp", "aw_audio_shorter.mp4"],
)
def test_nearly_silent_sound_is_measured_and_skipped_below_the_limit_that_is_set(
    name: str,
) -> None:
    small = {"spec": ClipSpec(size=8), "window": WindowSpec(frames=4)}

    (clip,) = clips_of(decode(f"awkward/{name}", **small))
    events = decode(
        f"awkward/{name}", **small, sound=SoundPolicy(silent="skip", silent_below_dbfs=-59)
    )

    heard = clip.waveform[:, : clip.sound_stop_frame * clip.sample_rate // 10]
    # ffmpeg's volumedetect, over the whole stream and rounded.
    wanted = float(manifest()[f"awkward/{name}"]["audio_mean_db"])
    assert loudness_dbfs(heard) == pytest.approx(wanted, abs=1.0)
    assert [type(event.error) for event in events[:-1]] == [SilentSoundError]


@pytest.mark.slow
def test_silent_sound_is_skipped_where_wanted() -> None:
    silent, quiet = (
        decode(f"awkward/{name}", sound=SoundPolicy(silent="skip"))
        for name in ("aw_12fps_silent_face.mp4", "aw_h263_aac8k_mono.3gp")
    )

    assert [type(event.error) for event in silent[:-1]] == [SilentSoundError]
    assert len(clips_of(quiet)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "good/bbb_astiav_180p.mp4",
        "good/media3_rooftop_320x240_5s.mp4",
        "good/mdn_stream_of_water.webm",
        pytest.param(PHONE, marks=pytest.mark.slow),
        pytest.param("good/media3_bedroom_720p.mp4", marks=pytest.mark.slow),
        pytest.param("good/mdn_crystal.webm", marks=pytest.mark.slow),
        pytest.param("good/chrome_clay.mp4", marks=pytest.mark.slow),
        pytest.param("awkward/aw_422_pixfmt.mp4", marks=pytest.mark.slow),
        pytest.param("awkward/aw_rot90_51ch_bbb.mp4", marks=pytest.mark.slow),
    ],
)
def test_decord_and_pyav_show_the_same_pictures(name: str) -> None:
    by_decord, by_pyav = (clips_of(decode(name, backend=backend)) for backend in ("decord", "pyav"))

    for ours, theirs in zip(by_decord, by_pyav, strict=True):
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        np.testing.assert_array_equal(ours.waveform, theirs.waveform)


def test_pictures_of_odd_size_differ_by_rounding_alone() -> None:
    silence, window = SoundPolicy(missing="silence"), WindowSpec(frames=4)
    (ours,), (theirs,) = (
        clips_of(
            decode("awkward/aw_bear_odd_161x121.webm", backend=b, sound=silence, window=window)
        )
        for b in ("decord", "pyav")
    )

    squared = np.square(ours.frames.astype(np.float64) - theirs.frames).mean()
    # 40 dB is where pictures are called the same by eye; the two FFmpegs pad odd chroma apart.
    assert 10 * np.log10(255**2 / squared) > 40


@pytest.fixture(scope="module")
def phone_clip() -> Clip:
    """Uneven timestamps, held upside down, and a hole in the sound."""
    (clip,) = clips_of(decode(PHONE))
    return clip


def test_a_phone_s_uneven_timestamps_are_followed(phone_clip: Clip) -> None:
    with av.open(str(CLIPS / PHONE)) as container:
        stored = list(container.decode(video=0))
    times = [frame.pts * frame.time_base for frame in stored]
    assert len({after - before for before, after in pairwise(times)}) > 3

    for index in (0, 5, 11, 17, 23):
        shown = max(i for i, time in enumerate(times) if time <= Fraction(index, 10))
        upright = np.rot90(stored[shown].to_ndarray(format="rgb24"), k=2)
        wanted = fit_picture(upright, size=256, fit="letterbox")
        np.testing.assert_array_equal(phone_clip.frames[index], wanted)


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("awkward/aw_sar_2by3.mp4", 216, 256),
        ("awkward/aw_h263_aac8k_mono.3gp", 192, 256),
        ("good/shaka_sintel_small.mp4", 110, 256),
        pytest.param("good/media3_hdr10_av1_portrait.mp4", 256, 144, marks=pytest.mark.slow),
        pytest.param("good/bbb_prog_10s.mp4", 144, 256, marks=pytest.mark.slow),
        pytest.param("good/tears_of_steel_0.webm", 107, 256, marks=pytest.mark.slow),
        pytest.param("awkward/aw_rot90_51ch_bbb.mp4", 256, 144, marks=pytest.mark.slow),
    ],
)
def test_pictures_lie_upright_and_in_shape_within_black(name: str, height: int, width: int) -> None:
    (clip,) = clips_of(decode(name))

    brightest = clip.frames.max(axis=(0, 1))
    top, left = (256 - height) // 2, (256 - width) // 2
    inside = brightest[top : top + height, left : left + width]
    assert (inside.max(axis=0) > 0).all()
    assert (inside.max(axis=1) > 0).all()
    brightest[top : top + height, left : left + width] = 0
    np.testing.assert_array_equal(brightest, 0)


def test_sound_with_a_hole_is_beside_the_frames_after_it(phone_clip: Clip) -> None:
    # The first block of sound is stamped 155 ms too early to reach the second.
    assert (phone_clip.sound_first_frame, phone_clip.sound_stop_frame) == (2, 24)


@pytest.mark.slow
def test_sound_before_the_first_picture_is_dropped() -> None:
    (clip,) = clips_of(decode("awkward/aw_editlist_positive_shift.mp4", spec=ClipSpec(size=8)))

    assert len(clip.frames) == 90
    assert (clip.sound_first_frame, clip.sound_stop_frame) == (0, 90)


@pytest.mark.slow
def test_every_channel_of_surround_sound_is_kept() -> None:
    (clip,) = clips_of(decode("awkward/aw_51ch_bbb_720p.mp4", spec=ClipSpec(size=8)))

    assert clip.waveform.shape == (6, 53 * 4800)
    assert len({loudness_dbfs(channel[None]) for channel in clip.waveform}) == 6
