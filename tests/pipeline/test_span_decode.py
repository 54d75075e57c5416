"""A stretch of a file as a source of its own: where it begins, what it holds, and where it ends."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from latents.errors import DecodeError, MissingSoundError, TooShortError
from pipeline.decode import DecodeEvent, SegmentRejected, SourceDecoded
from pipeline.spans import Span

av = pytest.importorskip("av")

from tests.pipeline.numbered_clips import (  # noqa: E402 - it needs av
    clips_of,
    decode,
    numbers,
    only_clip,
    ramp,
    rejections,
    task_for,
    tenths,
    write_video,
)
from tests.pipeline.remuxed import remux, zeroed  # noqa: E402

BACKENDS = ["decord", "pyav"]


def decode_span(path: Path, start: str, stop: str, backend: str = "pyav") -> list[DecodeEvent]:
    span = Span(start_seconds=Decimal(start), stop_seconds=Decimal(stop))
    return decode(replace(task_for(path), span=span), backend=backend)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten seconds; every 1.2 s a key picture, and none is predicted across it."""
    return write_video(
        tmp_path / "long.mkv",
        tenths(100),
        sound=ramp(10),
        options={"g": "12", "keyint_min": "12", "sc_threshold": "0", "flags": "+cgop"},
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_span_shows_and_sounds_what_lies_in_it(path: Path, backend: str) -> None:
    clip = only_clip(decode_span(path, "3.3", "5.5", backend))

    assert numbers(clip) == list(range(33, 55))
    np.testing.assert_array_equal(clip.waveform[0] * 32768, ramp(10)[0, 26400:44000])
    assert (clip.key.start_frame, clip.segment) == (0, 0)
    assert (clip.sound_first_frame, clip.sound_stop_frame) == (0, 22)


def test_a_span_between_two_pictures_begins_with_the_one_that_is_shown(path: Path) -> None:
    clip = only_clip(decode_span(path, "3.35", "4.55"))

    assert numbers(clip) == list(range(33, 45))
    np.testing.assert_array_equal(clip.waveform[0] * 32768, ramp(10)[0, 26800:36400])


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_clips_are_those_of_the_same_stretch_cut_out_at_a_key_picture(
    tmp_path: Path, path: Path, backend: str
) -> None:
    # 4.8 s; the container counts in milliseconds, and so does the cut.
    cut = remux(path, tmp_path / "cut.mkv", from_seconds=4.8)

    ours, theirs = decode_span(path, "4.8", "10", backend), decode(cut, backend=backend)

    assert [clip.segment for clip in clips_of(ours)] == [0, 1]
    assert ours[-1] == theirs[-1]
    for one, other in zip(clips_of(ours), clips_of(theirs), strict=True):
        assert one.key == other.key
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.waveform, other.waveform)


def test_a_span_is_cut_as_any_source(path: Path) -> None:
    clips = clips_of(decode_span(path, "2", "8.4"))

    assert [(clip.segment, clip.key.start_frame, len(clip.frames)) for clip in clips] == [
        (0, 0, 20),
        (1, 20, 20),
        (2, 40, 24),
    ]


def test_a_span_that_begins_at_zero_counts_from_the_first_picture(tmp_path: Path) -> None:
    late = write_video(tmp_path / "late.mkv", tenths(40, start=0.35), sound=ramp(5))

    clip = only_clip(decode_span(late, "0", "2"))

    assert numbers(clip) == list(range(20))
    np.testing.assert_array_equal(clip.waveform[0] * 32768, ramp(5)[0, 2800:18800])


def test_a_span_over_the_end_ends_with_the_file(path: Path) -> None:
    assert numbers(only_clip(decode_span(path, "8", "99"))) == list(range(80, 100))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_span_beyond_the_end_is_too_short_and_says_so(path: Path, backend: str) -> None:
    events = decode_span(path, "12.5", "20", backend)

    assert rejections(events) == [(None, TooShortError)]
    assert isinstance(events[0], SegmentRejected)
    assert events[0].error.reason == "its pictures end before the span begins, at 12.5 s"
    assert events[-1] == SourceDecoded(num_segments=0)


def test_a_span_of_less_than_a_window_is_too_short(path: Path) -> None:
    assert rejections(decode_span(path, "3", "3.5")) == [(None, TooShortError)]


def test_a_span_behind_the_end_of_the_sound_has_none(tmp_path: Path) -> None:
    quiet = write_video(tmp_path / "quiet.mkv", tenths(60), sound=ramp(2))

    assert rejections(decode_span(quiet, "3", "5")) == [(None, MissingSoundError)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_behind_a_span_is_not_read(
    path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_packets = pytest.importorskip("pipeline.pyav_video").read_packets
    latest: list[float] = []

    def watched(*arguments):
        for packet in read_packets(*arguments):
            latest.append(float((packet.pts or 0) * packet.time_base))
            yield packet

    monkeypatch.setattr("pipeline.pyav_video.read_packets", watched)
    only_clip(decode_span(path, "1", "3", backend))

    # The decoder holds a few pictures back to put them in order.
    assert 3 <= max(latest) < 4


@pytest.mark.parametrize(("start", "faults"), [("0", [(0, DecodeError)]), ("4", [])])
def test_damage_before_a_span_does_not_touch_it(
    tmp_path: Path, path: Path, start: str, faults: list[object]
) -> None:
    damaged = remux(path, tmp_path / "damaged.mkv", change=zeroed(14))

    assert rejections(decode_span(damaged, start, str(int(start) + 2))) == faults


def test_a_span_of_a_file_whose_times_start_over_before_it_says_so(tmp_path: Path) -> None:
    part = write_video(tmp_path / "part.ts", tenths(30), sound=ramp(3))
    (tmp_path / "twice.ts").write_bytes(2 * part.read_bytes())

    (rejected, _) = decode_span(tmp_path / "twice.ts", "4", "6")

    assert isinstance(rejected, SegmentRejected)
    assert "its timestamps start over" in rejected.error.reason


def test_passing_over_what_lies_before_a_span_shows_signs_of_life(tmp_path: Path) -> None:
    long = write_video(tmp_path / "long.mp4", tenths(700), sound=ramp(70))
    calls: list[int] = []
    span = Span(start_seconds=Decimal(66), stop_seconds=Decimal(68))

    decode(replace(task_for(long), span=span), on_progress=lambda: calls.append(1))

    # Once when the file is open, after 256 and 512 packets, and after the span's 20 frames.
    assert len(calls) == 4
