"""Which of several video streams is decoded, and that cover art never is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from av.stream import Disposition  # noqa: E402 - it comes with av

from latents.errors import DecodeError  # noqa: E402
from pipeline.pyav_video import probe_video, video_stream  # noqa: E402
from tests.pipeline.numbered_clips import (  # noqa: E402
    SIZE,
    SPEC,
    decode,
    numbered_picture,
    numbers,
    only_clip,
    ramp,
    rejections,
    tenths,
    write_video,
)

BACKENDS = ["decord", "pyav"]
COVER = 255
"""Its number: all white."""


def write_cover(path: Path, codec: str) -> Path:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        picture = av.VideoFrame.from_ndarray(numbered_picture(COVER), format="rgb24")
        container.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def write_together(
    path: Path,
    parts: Sequence[Path],
    *,
    options: dict[str, str] | None = None,
    dispositions: Sequence[Disposition] = (),
) -> Path:
    """The streams of some files in one file, in this order."""
    packets = []
    with av.open(str(path), "w", options=options or {}) as written:
        containers = [av.open(str(part)) for part in parts]
        num_pictures = 0
        for container in containers:
            streams = {}
            for stream in container.streams:
                streams[stream.index] = written.add_stream_from_template(stream)
                if stream.type == "video":
                    if num_pictures < len(dispositions):
                        streams[stream.index].disposition = dispositions[num_pictures]
                    num_pictures += 1
            for packet in container.demux():
                if packet.size:
                    packet.stream = streams[packet.stream.index]
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            written.mux(packet)
        for container in containers:
            container.close()
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "video.mp4", tenths(20), sound=ramp(2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "png"), (".mp4", "mjpeg"), (".mkv", "mjpeg")]
)
@pytest.mark.parametrize(
    "disposition",
    [Disposition.attached_pic, Disposition.attached_pic | Disposition.default, Disposition.default],
    ids=["as cover", "as cover and default", "as default track"],
)
def test_a_cover_before_the_video_does_not_hide_it(
    tmp_path: Path,
    video: Path,
    backend: str,
    codec: str,
    suffix: str,
    disposition: Disposition,
) -> None:
    cover = write_cover(tmp_path / f"cover.{codec}", codec)
    path = write_together(
        tmp_path / f"both{suffix}", [cover, video], dispositions=[disposition, Disposition(0)]
    )

    clip = only_clip(decode(path, backend=backend))

    assert numbers(clip) == list(range(20))
    np.testing.assert_array_equal(clip.frames, only_clip(decode(video)).frames)


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    cover = write_cover(tmp_path / "cover.jpg", "mjpeg")
    sound = write_video(tmp_path / "sound.mp4", [], sound=ramp(2))
    path = write_together(
        tmp_path / "song.mp4", [sound, cover], dispositions=[Disposition.attached_pic]
    )

    events = decode(path)

    assert rejections(events) == [(None, DecodeError)]
    assert "holds no video stream" in str(events[0].error)


def write_inverse(path: Path) -> Path:
    """The numbers run backwards from 99, so that it is told from the other video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            picture = numbered_picture(99 - number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_second_default", [False, True])
def test_of_several_videos_the_default_track_is_decoded(
    tmp_path: Path, video: Path, backend: str, is_second_default: bool
) -> None:
    other = write_inverse(tmp_path / "other.mp4")
    flags = [Disposition(0), Disposition.default]
    path = write_together(
        tmp_path / "both.mkv",
        [video, other],
        dispositions=flags if is_second_default else flags[::-1],
    )

    shown = numbers(only_clip(decode(path, backend=backend)))

    assert shown == (list(range(99, 79, -1)) if is_second_default else list(range(20)))


def test_a_stream_without_decoder_does_not_hide_one_that_has_one(
    tmp_path: Path, video: Path
) -> None:
    other = write_video(tmp_path / "other.mkv", tenths(20), codec="libvpx-vp9")
    path = write_together(
        tmp_path / "both.mkv",
        [other, video],
        dispositions=[Disposition.default, Disposition(0)],
    )
    path.write_bytes(path.read_bytes().replace(b"V_VP9", b"V_XYZ"))

    assert numbers(only_clip(decode(path))) == list(range(20))


def test_looking_for_a_moving_stream_shows_signs_of_life(tmp_path: Path) -> None:
    cover = write_cover(tmp_path / "cover.jpg", "mjpeg")
    long = write_video(tmp_path / "long.mp4", tenths(600))
    path = write_together(
        tmp_path / "both.mkv", [cover, long], dispositions=[Disposition.default, Disposition(0)]
    )
    calls: list[int] = []

    with av.open(str(path)) as container:
        stream = video_stream(container, source="clip", on_progress=lambda: calls.append(1))
        assert stream.index == 1

    assert len(calls) == 2


def test_listing_packets_shows_signs_of_life(tmp_path: Path) -> None:
    packet_times = pytest.importorskip("pipeline.packet_times").packet_times
    path = write_video(tmp_path / "long.mp4", tenths(600))
    calls: list[int] = []

    times = packet_times(str(path), source="clip", on_progress=lambda: calls.append(1))

    assert len(times.ticks) == 600
    assert len(calls) == 2


def test_the_first_picture_is_that_of_the_video(tmp_path: Path, video: Path) -> None:
    cover = write_cover(tmp_path / "cover.jpg", "mjpeg")
    path = write_together(
        tmp_path / "both.mkv", [cover, video], dispositions=[Disposition.default, Disposition(0)]
    )

    probe = probe_video(str(path), SPEC, source="clip")

    assert (probe.pixel_format, probe.first_picture.max()) == ("yuv420p", 0)
