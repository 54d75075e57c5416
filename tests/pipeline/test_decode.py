"""From a source to clips: what is picked, cut, aligned, accepted and rejected, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latents.clip import Clip, ClipSpec, WindowSpec, loudness_dbfs
from latents.errors import (
    DecodeError,
    MissingSoundError,
    SilentSoundError,
    TooShortError,
)
from pipeline.decode import SegmentRejected, SoundPolicy, SourceDecoded, SourceTask
from pipeline.scene_clips import SceneRef, scene_digest
from pipeline.segments import Picture, PicturesRefusedError
from pipeline.spans import Span

av = pytest.importorskip("av")

from tests.pipeline.numbered_clips import (  # noqa: E402 - it needs av
    RATE,
    SIZE,
    decode,
    number_of,
    numbered_picture,
    numbers,
    only_clip,
    ramp,
    rejections,
    task_for,
    tenths,
    write_video,
)

BACKENDS = ["decord", "pyav"]


# Pictures


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_follow_the_timestamps_through_reordered_pictures(
    tmp_path: Path, backend: str, suffix: str
) -> None:
    # x264 reorders pictures (B-frames); 30 a second, and a key frame every 12.
    thirtieths = [Fraction(i, 30) for i in range(60)]
    path = write_video(tmp_path / f"steady{suffix}", thirtieths, sound=ramp(2))

    assert numbers(only_clip(decode(path, backend=backend))) == list(range(0, 60, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_shown_before_the_key_picture_they_follow_keep_their_place(
    tmp_path: Path, backend: str
) -> None:
    # Open groups of pictures: some are predicted from the key picture behind them.
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}
    thirtieths = [Fraction(i, 30) for i in range(60)]
    path = write_video(tmp_path / "open.mp4", thirtieths, sound=ramp(2), options=options)

    assert numbers(only_clip(decode(path, backend=backend))) == list(range(0, 60, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_uneven_times_are_followed(tmp_path: Path, backend: str) -> None:
    times = [0, 0.04, 0.08, 0.35, 0.36, 0.41, 0.7, 0.74, 0.78, 0.83, 0.95, 1.2, 1.3]
    path = write_video(tmp_path / "uneven.mkv", times, sound=ramp(1.4))

    shown = numbers(only_clip(decode(path, backend=backend)))

    assert shown[:13] == [0, 2, 2, 2, 4, 5, 5, 6, 8, 9, 10, 10, 11]


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_begins_with_the_first_picture(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "late.mkv", tenths(16, start=0.35), sound=ramp(2))

    clip = only_clip(decode(path, backend=backend))

    assert numbers(clip) == list(range(16))
    # Sound before the first picture is dropped: sample 0 is the one heard at 0.35 s.
    np.testing.assert_array_equal(clip.waveform[0] * 32768, ramp(2)[0, 2800 : 2800 + 12800])


def test_mpeg_ts_is_decoded_from_its_first_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "stream.ts", tenths(40), sound=ramp(4))

    clips = [event for event in decode(path, backend="decord") if isinstance(event, Clip)]

    assert [number for clip in clips for number in numbers(clip)] == list(range(40))


def test_both_backends_give_the_same_bytes(tmp_path: Path) -> None:
    # 180 wide, so that fitting has something to round.
    path = write_video(tmp_path / "same.mp4", tenths(20), sound=ramp(2), shape=(90, 180))

    first, second = (only_clip(decode(path, backend=backend)) for backend in BACKENDS)

    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.waveform, second.waveform)


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes_are_letterboxed(tmp_path: Path, backend: str) -> None:
    path = write_video(
        tmp_path / "odd.mkv", tenths(16), sound=ramp(2), shape=(47, 63), pixel_format="yuv444p"
    )

    clip = only_clip(decode(path, backend=backend))

    assert numbers(clip) == list(range(16))
    # round(47 / 63 · 64) = 48 rows of picture between 8 of black above and below.
    rows = np.flatnonzero(clip.frames[15, 0].max(axis=1) > 127)
    assert (rows.min(), rows.max()) == (8, 55)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_are_not_square_are_stretched(tmp_path: Path, backend: str) -> None:
    path = write_video(
        tmp_path / "wide.mp4", tenths(16), sound=ramp(2), pixel_aspect=Fraction(2, 1)
    )

    clip = only_clip(decode(path, backend=backend))

    assert numbers(clip) == list(range(16))
    rows = np.flatnonzero(clip.frames[15, 0].max(axis=1) > 127)
    assert (rows.min(), rows.max()) == (16, 47)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_turned_picture_is_put_upright(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "turned.mp4", tenths(16), sound=ramp(2), turn_left=90)

    clip = only_clip(decode(path, backend=backend))

    # Turned to the left, the bar of the lowest digit (left) is at the bottom.
    upright = np.rot90(clip.frames, k=-1, axes=(2, 3))
    assert [number_of(frame) for frame in upright] == list(range(16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mirrored_picture_is_mirrored_back(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "selfie.mp4", tenths(16), sound=ramp(2), mirrored=True)

    clip = only_clip(decode(path, backend=backend))

    assert [number_of(frame[..., ::-1]) for frame in clip.frames] == list(range(16))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixel_format", ["yuvj420p", "yuv422p", "yuv420p10le"])
def test_every_pixel_format_ends_in_the_same_colours(
    tmp_path: Path, backend: str, pixel_format: str
) -> None:
    path = write_video(
        tmp_path / "format.mp4", tenths(16), sound=ramp(2), pixel_format=pixel_format
    )

    clip = only_clip(decode(path, backend=backend))

    # Full white and black to within x264's quantisation, not the 16..235 of limited range.
    middle = clip.frames[15, :, SIZE // 2, SIZE // 16 :: SIZE // 8].astype(int)
    np.testing.assert_allclose(middle[:, :4], 255, atol=8)
    np.testing.assert_allclose(middle[:, 4:], 0, atol=8)


def test_a_source_is_cut_and_its_short_tail_joined(tmp_path: Path) -> None:
    lengths = {}
    for count in (34, 35):
        path = write_video(tmp_path / f"{count}.mkv", tenths(count), sound=ramp(count / 10))
        clips = [event for event in decode(path) if isinstance(event, Clip)]
        lengths[count] = [len(clip.frames) for clip in clips]
        assert [clip.key.start_frame for clip in clips] == [0, 20][: len(clips)]
        assert [number for clip in clips for number in numbers(clip)] == list(range(count))

    assert lengths == {34: [34], 35: [20, 15]}


def test_the_specified_cut_of_ten_seconds(tmp_path: Path) -> None:
    spec, window = replace(ClipSpec(), size=SIZE), WindowSpec()
    lengths = []
    for count in (130, 131):
        path = write_video(tmp_path / f"{count}.mkv", tenths(count), sound=ramp(count / 10))
        events = decode(path, spec=spec, window=window)
        lengths.append([len(event.frames) for event in events if isinstance(event, Clip)])

    assert lengths == [[130], [100, 31]]


def test_segments_encoded_already_are_not_yielded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mkv", tenths(60), sound=ramp(6))

    events = decode(replace(task_for(path), skip_segments=frozenset({0, 2})))

    (clip,) = [event for event in events if isinstance(event, Clip)]
    assert (clip.segment, clip.key.start_frame) == (1, 20)
    assert numbers(clip) == list(range(20, 40))
    np.testing.assert_array_equal(clip.waveform[0] * 32768, ramp(6)[0, 16000:32000])
    assert events[-1] == SourceDecoded(num_segments=3)


# Sound


def test_every_channel_is_kept_in_order(tmp_path: Path) -> None:
    sound = ramp(2, channels=6)
    path = write_video(tmp_path / "surround.mkv", tenths(20), sound=sound, layout="5.1")

    clip = only_clip(decode(path))

    assert (clip.sample_rate, clip.waveform.dtype) == (RATE, np.float32)
    np.testing.assert_array_equal(clip.waveform * 32768, sound)


def test_each_clip_has_the_sound_beside_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mkv", tenths(60), sound=ramp(6))

    clips = [event for event in decode(path) if isinstance(event, Clip)]

    heard = np.concatenate([clip.waveform for clip in clips], axis=1)
    np.testing.assert_array_equal(heard * 32768, ramp(6))


def test_sound_that_starts_late_leaves_silence_before_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", tenths(20), sound=ramp(1.47), sound_start=0.53)

    clip = only_clip(decode(path))

    assert (clip.sound_first_frame, clip.sound_stop_frame) == (5, 20)
    np.testing.assert_array_equal(clip.waveform[0, :4240], 0)
    np.testing.assert_array_equal(clip.waveform[0, 4240:] * 32768, ramp(1.47)[0])


def test_sound_that_ends_early_ends_the_span(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mkv", tenths(20), sound=ramp(1.24))

    clip = only_clip(decode(path))

    assert (clip.sound_first_frame, clip.sound_stop_frame) == (0, 12)
    assert clip.waveform.shape == (1, 2 * RATE)


def test_a_gap_in_the_sound_is_silent_and_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    whole = write_video(tmp_path / "whole.mkv", tenths(20), sound=ramp(2))
    with av.open(str(whole)) as read, av.open(str(path), "w") as written:
        streams = {
            stream.index: written.add_stream_from_template(stream) for stream in read.streams
        }
        for packet in read.demux():
            is_sound = packet.stream.type == "audio"
            if packet.size and not (is_sound and 300 <= packet.pts < 600):
                packet.stream = streams[packet.stream.index]
                written.mux(packet)

    clip = only_clip(decode(path))

    missing = np.flatnonzero(clip.waveform[0, 1:] == 0) + 1
    assert (missing.min(), missing.max() + 1) == (2400, 4800)
    np.testing.assert_array_equal(clip.waveform[0, 4800:] * 32768, ramp(2)[0, 4800:])
    assert (clip.sound_first_frame, clip.sound_stop_frame) == (6, 20)


def test_timestamps_rounded_by_the_container_leave_no_seams(tmp_path: Path) -> None:
    # Matroska's timestamps are whole milliseconds; at 44.1 kHz FLAC's blocks do not begin on them.
    path = tmp_path / "rounded.mkv"
    tone = np.sin(2 * np.pi * 441 * np.arange(88200) / 44100).astype(np.float32)[None]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height = video.width = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("flac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone * 16384).astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = 44100, 0
        packets = [*audio.encode(frame), *audio.encode(None)]
        for number in range(20):
            picture = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            packets += video.encode(picture)
        packets += video.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)

    clip = only_clip(decode(path))

    np.testing.assert_allclose(clip.waveform, tone / 2, atol=1 / 16384)


def test_lossy_sound_is_in_step_with_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = (rng.normal(0, 3000, (1, 2 * RATE))).astype(np.int16)
    path = write_video(tmp_path / "lossy.mp4", tenths(20), sound=sound)

    clip = only_clip(decode(path))

    # AAC's priming is removed: the sound fits best where it is, not a block later or earlier.
    lags = range(-1100, 1101)
    heard, said = clip.waveform[0, 2000:-2000], sound[0].astype(np.float32)
    scores = [float(heard @ said[2000 + lag : 2000 + lag + len(heard)]) for lag in lags]
    assert lags[int(np.argmax(scores))] == 0


# What is accepted


def test_a_source_shorter_than_a_window_is_rejected_as_a_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mkv", tenths(11), sound=ramp(1.1))

    events = decode(path, window=WindowSpec())

    assert rejections(events) == [(None, TooShortError)]
    assert events[-1] == SourceDecoded(num_segments=1)
    assert "1.1 s, 11 frames at 10 fps; a window is 16 frames = 1.6 s" in str(events[0].error)


def test_a_source_with_too_little_sound_is_rejected_as_a_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "quiet.mkv", tenths(60), sound=ramp(0.5))

    events = decode(path)

    assert rejections(events) == [(None, TooShortError)]
    assert events[-1] == SourceDecoded(num_segments=3)


def test_a_segment_with_too_little_sound_is_rejected_alone(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", tenths(60), sound=ramp(3), sound_start=3)

    events = decode(path)

    assert rejections(events) == [(0, TooShortError)]
    assert [event.segment for event in events if isinstance(event, Clip)] == [1, 2]
    assert isinstance(events[0], SegmentRejected)
    assert events[-1] == SourceDecoded(num_segments=3)


def test_sound_that_lies_beside_no_picture_is_missing_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "apart.mkv", tenths(20, start=2), sound=ramp(1))

    assert rejections(decode(path)) == [(None, MissingSoundError)]


def test_a_source_without_an_audio_stream_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "mute.mp4", tenths(40))

    events = decode(path)

    assert rejections(events) == [(None, MissingSoundError)]
    assert events[-1] == SourceDecoded(num_segments=0)


def test_sound_of_a_codec_without_decoder_counts_as_none(tmp_path: Path) -> None:
    path = write_video(tmp_path / "unknown.mkv", tenths(20), sound=ramp(2))
    path.write_bytes(path.read_bytes().replace(b"A_PCM/INT/LIT", b"A_UNHEARD_OF1"))

    events = decode(path)

    assert rejections(events) == [(None, MissingSoundError)]
    assert "no audio stream that can be decoded" in str(events[0].error)


def test_a_source_without_an_audio_stream_gets_silence_where_wanted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "mute.mp4", tenths(20))

    clip = only_clip(decode(path, sound=SoundPolicy(missing="silence")))

    assert clip.sample_rate == 16000
    np.testing.assert_array_equal(clip.waveform, np.zeros((1, 32000), np.float32))
    assert (clip.sound_first_frame, clip.sound_stop_frame) == (0, 20)


def test_silent_sound_is_kept_or_skipped(tmp_path: Path) -> None:
    path = write_video(tmp_path / "silent.mkv", tenths(20), sound=np.zeros((1, 16000), np.int16))

    kept = only_clip(decode(path))
    skipped = decode(path, sound=SoundPolicy(silent="skip"))

    assert loudness_dbfs(kept.waveform) == -120
    assert rejections(skipped) == [(0, SilentSoundError)]
    assert "-120 dBFS" in str(skipped[0].error)


def test_sound_just_above_the_limit_is_not_silent(tmp_path: Path) -> None:
    # One step of 16 bits is -90 dBFS.
    sound = np.ones((1, 16000), np.int16)
    path = write_video(tmp_path / "faint.mkv", tenths(20), sound=sound)

    decoded = decode(path, sound=SoundPolicy(silent="skip", silent_below_dbfs=-91))

    assert len(only_clip(decoded).frames) == 20


def test_sound_that_is_not_a_number_is_rejected(tmp_path: Path) -> None:
    sound = np.zeros((1, 32000), np.float32)
    sound[0, 5000] = np.nan
    path = write_video(tmp_path / "nan.mkv", tenths(40), sound=sound)

    events = decode(path)

    assert rejections(events) == [(0, DecodeError)]
    assert [event.segment for event in events if isinstance(event, Clip)] == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_video_is_rejected_with_the_reason(tmp_path: Path, backend: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("these are words\n" * 50)
    write_video(tmp_path / "sound.mkv", [], sound=ramp(2))
    reasons = {
        "empty": "is empty",
        "text": "cannot be opened as a video",
        "gone": "cannot be read: No such file or directory",
        "sound": "holds no video stream",
    }

    for name, reason in reasons.items():
        suffix = ".mkv" if name == "sound" else ".mp4"
        events = decode(tmp_path / f"{name}{suffix}", backend=backend)
        assert rejections(events) == [(None, DecodeError)]
        assert events[-1] == SourceDecoded(num_segments=0)
        assert reason in str(events[0].error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_breaks_off_gives_what_is_there(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "cut.mkv", tenths(100), sound=ramp(10))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    events = decode(path, backend=backend)

    shown = [n for event in events if isinstance(event, Clip) for n in numbers(event)]
    assert 40 <= len(shown) <= 60
    # Of the last pictures some were cut off that are shown earlier than they are stored.
    assert shown[:-4] == list(range(len(shown) - 4))
    assert rejections(events) == []


# decord and its limits


def test_decord_is_asked_first_and_refuses_what_it_would_get_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("decord")
    steady = write_video(tmp_path / "steady.mp4", tenths(20), sound=ramp(2))
    stream = write_video(tmp_path / "stream.ts", tenths(20), sound=ramp(2))

    with caplog.at_level(logging.DEBUG, logger="pipeline.video_clips"):
        decode(steady, backend="decord")
        assert caplog.messages == []
        decode(stream, backend="decord")

    assert "decord gave 0 segments, then: mpegts" in caplog.text


def test_pyav_takes_over_where_decord_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decord_video = pytest.importorskip("pipeline.decord_video")
    path = write_video(tmp_path / "long.mkv", tenths(60), sound=ramp(6))

    def gives_up(*_: object, **__: object) -> Iterator[Picture]:
        for number in range(50):
            # Wrong from 4.0 s on, when the second segment is complete and the third is not.
            shown = numbered_picture(number if number < 40 else 0).transpose(2, 0, 1)
            yield Picture(
                time=Fraction(number, 10), duration=None, render=lambda shown=shown: shown
            )
        raise PicturesRefusedError("pictures were lost on the way")

    monkeypatch.setattr(decord_video, "read_pictures", gives_up)
    clips = [event for event in decode(path, backend="decord") if isinstance(event, Clip)]

    assert [number for clip in clips for number in numbers(clip)] == list(range(60))


# Scenes


def scene_task(seconds: float = 1) -> SourceTask:
    ref = SceneRef(seed=0, index=1, seconds=seconds)
    return SourceTask(uri=f"scenes:0:1:{seconds}", path=None, scene=ref, digest=scene_digest(ref))


def test_a_scene_is_a_source_like_any_other() -> None:
    clip = only_clip(decode(scene_task()))

    assert clip.frames.shape == (10, 3, SIZE, SIZE)
    assert clip.waveform.shape == (2, 22050)
    assert (clip.sound_first_frame, clip.sound_stop_frame) == (0, 10)
    assert clip.key.source_digest == scene_digest(SceneRef(seed=0, index=1, seconds=1))


def test_scenes_decode_to_the_same_bytes_each_time() -> None:
    first, second = only_clip(decode(scene_task())), only_clip(decode(scene_task()))

    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.waveform, second.waveform)


def test_the_digest_of_a_scene_names_all_it_follows_from(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = SceneRef(seed=0, index=1, seconds=4)
    others = [replace(ref, seed=1), replace(ref, index=2), replace(ref, seconds=5)]
    digests = {scene_digest(one) for one in [ref, *others]}
    assert len(digests) == 4
    assert scene_digest(replace(ref, seconds=4.0)) == scene_digest(ref)

    monkeypatch.setattr("pipeline.scene_clips.RENDERER_VERSION", 1000)
    assert scene_digest(ref) not in digests


# Settings


@pytest.mark.parametrize(
    "setting", [{"missing": "skip"}, {"silent": "quarantine"}, {"silent_below_dbfs": 3}]
)
def test_an_unknown_sound_policy_is_refused(setting: dict[str, object]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"sound\.{name} is"):
        SoundPolicy(**setting)


def test_a_task_has_a_path_or_a_scene() -> None:
    with pytest.raises(ValueError, match="either a path or a scene"):
        SourceTask(uri="nothing", path=None, scene=None, digest="0" * 64)


def test_a_scene_has_no_spans() -> None:
    span = Span(start_seconds=Decimal(0), stop_seconds=Decimal(1))

    with pytest.raises(ValueError, match="a scene has no spans"):
        replace(scene_task(), span=span)
