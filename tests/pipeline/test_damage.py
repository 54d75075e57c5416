"""Damaged videos: what touches the damage is rejected, and nothing else moves or changes."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from latents.clip import Clip, WindowSpec
from latents.errors import DecodeError, TooShortError
from pipeline.decode import DecodeEvent, SegmentRejected, SourceDecoded

av = pytest.importorskip("av")

from pipeline.picture_damage import Decoded, Lost, mark_damage  # noqa: E402 - it comes with av
from tests.pipeline.numbered_clips import (  # noqa: E402
    clips_of,
    decode,
    numbers,
    ramp,
    rejections,
    tenths,
    write_video,
)
from tests.pipeline.remuxed import noisy, remux, zeroed  # noqa: E402

BACKENDS = ["decord", "pyav"]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def assert_same_clips(ours: list[Clip], theirs: list[Clip]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.key, one.segment) == (other.key, other.segment)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.waveform, other.waveform)
        assert one.sound_first_frame == other.sound_first_frame
        assert one.sound_stop_frame == other.sound_stop_frame


def write_ten_seconds(path: Path, codec: str = "libx264") -> Path:
    """Five segments of two seconds, with a key picture each 1.2 s."""
    options = {"g": "12", "sc_threshold": "0" if codec == "libx264" else "1000000000"}
    return write_video(path, tenths(100), sound=ramp(10), codec=codec, options=options)


# Decoding goes on behind damage


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_only_the_segments_that_touch_damage_are_rejected(
    tmp_path: Path, backend: str, codec: str
) -> None:
    whole = write_ten_seconds(tmp_path / "whole.mp4", codec)
    damaged = remux(whole, tmp_path / "damaged.mp4", change=zeroed(50))

    events = decode(damaged, backend=backend)

    assert rejections(events) == [(2, DecodeError)]
    assert events[-1] == SourceDecoded(num_segments=5)
    # Bytes, presentation times and numbers are those of the same segments undamaged.
    wanted = clips_of(decode(whole, backend=backend))
    assert_same_clips(clips_of(events), [wanted[i] for i in (0, 1, 3, 4)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rejection_says_from_when_to_when(tmp_path: Path, backend: str) -> None:
    whole = write_ten_seconds(tmp_path / "whole.mp4", "mpeg4")
    damaged = remux(whole, tmp_path / "damaged.mp4", change=noisy(45))

    (rejected,) = [e for e in decode(damaged, backend=backend) if isinstance(e, SegmentRejected)]

    # A key picture follows at 4.8 s.
    assert rejected.error.reason == "its pictures are damaged between 4.5 s and 4.8 s"


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_over_a_cut_rejects_both_segments(tmp_path: Path, backend: str) -> None:
    whole = write_ten_seconds(tmp_path / "whole.mp4", "mpeg4")
    damaged = remux(whole, tmp_path / "damaged.mp4", change=noisy(39))

    events = decode(damaged, backend=backend)

    reasons = [event.error.reason for event in events if isinstance(event, SegmentRejected)]
    assert reasons == [
        "its pictures are damaged between 3.9 s and 4.0 s",
        "its pictures are damaged between 4.0 s and 4.8 s",
    ]
    assert [clip.segment for clip in clips_of(events)] == [0, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_that_are_missing_move_none_of_those_behind_them(
    tmp_path: Path, backend: str
) -> None:
    whole = write_ten_seconds(tmp_path / "whole.mp4", "mpeg4")
    gapped = remux(
        whole, tmp_path / "gap.mp4", change=lambda n, content: None if 62 <= n < 66 else content
    )

    clips = clips_of(decode(gapped, backend=backend))

    wanted = clips_of(decode(whole, backend=backend))
    assert_same_clips(clips[:3] + clips[4:], wanted[:3] + wanted[4:])


def test_damage_in_the_container_is_damage_to_the_pictures_it_held(tmp_path: Path) -> None:
    path = write_ten_seconds(tmp_path / "whole.mkv")
    wanted = clips_of(decode(path))
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, len(content), np.uint8).tobytes()
    first, stop = int(0.55 * len(content)), int(0.65 * len(content))
    content[first:stop:7] = noise[first:stop:7]
    (tmp_path / "damaged.mkv").write_bytes(content)

    events = decode(tmp_path / "damaged.mkv")

    assert rejections(events) == [(2, DecodeError), (3, DecodeError)]
    assert_same_clips(clips_of(events), [wanted[i] for i in (0, 1, 4)])


def test_a_damaged_start_is_passed_over_to_the_next_key_picture(tmp_path: Path) -> None:
    whole = write_ten_seconds(tmp_path / "whole.mkv", "mpeg4")
    damaged = remux(whole, tmp_path / "damaged.mkv", change=zeroed(0))

    clips = clips_of(decode(damaged))

    # Time begins with the first whole picture, and the sound is what lies beside it.
    assert numbers(clips[0])[0] == 12
    heard, said = clips[0].waveform[0] * 32768, ramp(10)[0, 9600:]
    np.testing.assert_array_equal(heard, said[: len(heard)])


def test_a_damaged_tail_does_not_take_the_segment_before_it_along(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", tenths(30), sound=ramp(3), codec="mpeg4")
    damaged = remux(whole, tmp_path / "damaged.mkv", change=noisy(28))

    events = decode(damaged)

    assert numbers(clips_of(events)[0]) == list(range(20))
    assert rejections(events) == [(1, DecodeError)]


def test_rejections_come_in_the_order_of_the_segments(tmp_path: Path) -> None:
    whole = write_video(
        tmp_path / "whole.mkv", tenths(80), sound=ramp(4), sound_start=4, codec="mpeg4"
    )
    damaged = remux(whole, tmp_path / "damaged.mkv", change=noisy(25))

    events = decode(damaged)

    assert rejections(events) == [(0, TooShortError), (1, DecodeError)]
    assert [event.segment for event in events[:-1]] == [0, 1, 2, 3]


def test_damage_everywhere_is_not_taken_for_too_little_sound(tmp_path: Path) -> None:
    one_key = {"g": "300", "sc_threshold": "1000000000"}
    whole = write_video(
        tmp_path / "whole.mkv", tenths(40), sound=ramp(4), codec="mpeg4", options=one_key
    )
    damaged = remux(whole, tmp_path / "damaged.mkv", change=zeroed(3))

    assert rejections(decode(damaged)) == [(0, DecodeError), (1, DecodeError)]


# What decoders give


def decoded(number: int, *, is_key: bool = False, is_corrupt: bool = False) -> Decoded:
    return Decoded(
        time=Fraction(number), duration=None, is_key=is_key, is_corrupt=is_corrupt, frame=number
    )


def marks(source: list[Decoded | Lost]) -> list[tuple[float, bool]]:
    pictures = mark_damage(source, interval=Fraction(1), render=lambda frame: frame)
    return [(float(picture.time), picture.is_damaged) for picture in pictures]


def test_doubt_lasts_from_a_corrupt_picture_to_the_next_key_picture() -> None:
    source = [
        decoded(0, is_key=True),
        decoded(1, is_corrupt=True),
        decoded(2),
        decoded(3, is_key=True, is_corrupt=True),
        decoded(4, is_key=True),
        decoded(5),
    ]

    assert [damaged for _, damaged in marks(source)] == [False, True, True, True, False, False]


def test_a_lost_picture_leaves_a_mark_where_it_should_have_been_shown() -> None:
    source = [decoded(0, is_key=True), Lost(latest=Fraction(1)), decoded(5, is_key=True)]

    assert marks(source) == [(0, False), (1, True), (5, False)]


def test_a_key_picture_that_was_decoded_before_the_loss_does_not_end_the_doubt() -> None:
    source = [decoded(0, is_key=True), Lost(latest=Fraction(2)), decoded(2, is_key=True)]

    assert marks([*source, decoded(7, is_key=True)])[-2:] == [(2, True), (7, False)]


def test_a_lost_last_picture_is_marked_at_the_end() -> None:
    assert marks([decoded(0, is_key=True), Lost(latest=None)]) == [(0, False), (1, True)]


# Decoding cannot go on


@pytest.mark.parametrize("backend", BACKENDS)
def test_times_that_start_over_end_a_source_with_one_rejection(
    tmp_path: Path, backend: str
) -> None:
    part = write_video(tmp_path / "part.ts", tenths(50), sound=ramp(5))
    twice = tmp_path / "twice.ts"
    twice.write_bytes(2 * part.read_bytes())

    events = decode(twice, backend=backend)

    # What comes before is what the part alone gives.
    assert_same_clips(clips_of(events), clips_of(decode(part, backend=backend)))
    assert [number for clip in clips_of(events) for number in numbers(clip)] == list(range(50))
    assert rejections(events) == [(2, DecodeError)]
    assert isinstance(events[-2], SegmentRejected)
    assert "its timestamps start over after 4.90 s" in events[-2].error.reason
    assert events[-1] == SourceDecoded(num_segments=3)


def test_frames_before_the_end_of_what_can_be_read_are_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_ten_seconds(tmp_path / "long.mkv")
    read_packets = pytest.importorskip("pipeline.pyav_video").read_packets

    num_left = [70]

    def breaks_off(*arguments):
        for packet in read_packets(*arguments):
            if not num_left[0]:
                raise av.InvalidDataError(1, "gone")
            num_left[0] -= 1
            yield packet

    monkeypatch.setattr("pipeline.pyav_video.read_packets", breaks_off)
    # The first picture is decoded once before.
    num_left[0] += 3
    events = decode(path)

    shown = [number for clip in clips_of(events) for number in numbers(clip)]
    # Some of the last pictures are shown earlier than others that came before them.
    assert shown[:66] == list(range(66))
    assert rejections(events) == [(len(clips_of(events)), DecodeError)]
    assert "breaks off" in events[-2].error.reason


# Nothing but clips and clip errors


def outcome(path: Path, backend: str) -> list[DecodeEvent]:
    return decode(path, backend=backend, window=WindowSpec())


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, most often in the headers, which lie at either end."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = rng.randrange(min(len(content), 4000))
        index = rng.choice((near, near, len(content) - 1 - near, rng.randrange(len(content))))
        changed[index] = rng.choice((0, 255, rng.randrange(256), changed[index] ^ 1))
    return bytes(changed)


@pytest.mark.slow
def test_mutated_videos_give_clips_and_clip_errors_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    originals = [*sorted(GOLDEN.glob("*.mp4")), *sorted(GOLDEN.glob("*.[mw]*[vm]"))]
    write_video(tmp_path / "a.ts", tenths(20), sound=ramp(2))
    write_video(tmp_path / "b.avi", tenths(20), sound=ramp(2), codec="mpeg4")
    write_video(tmp_path / "c.mkv", tenths(20), sound=ramp(2), codec="libvpx-vp9")
    contents = [(path.suffix, path.read_bytes()) for path in [*originals, *tmp_path.iterdir()]]
    kinds: set[str] = set()
    stop = monotonic() + 20

    for round_number in range(400):
        if monotonic() > stop:
            break
        suffix, content = contents[round_number % len(contents)]
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(content, rng))
        events = outcome(path, "pyav")
        assert isinstance(events[-1], SourceDecoded)
        kinds |= {type(getattr(event, "error", event)).__name__ for event in events}

    assert {"Clip", "DecodeError"} <= kinds
    assert kinds <= {
        "Clip",
        "SourceDecoded",
        "DecodeError",
        "TooShortError",
        "MissingSoundError",
    }


def test_a_stream_of_a_codec_that_nobody_knows_is_no_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "unknown.mkv", tenths(20), sound=ramp(2))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_UNHEARD/OF/IT"))

    (rejected, end) = decode(path)

    assert isinstance(rejected, SegmentRejected)
    assert isinstance(rejected.error, DecodeError)
    assert rejected.error.reason == "it holds no video stream that can be decoded"
    assert end == SourceDecoded(num_segments=0)
