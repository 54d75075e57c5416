"""Colours of decoded pictures: HDR by its code values, and equal ones from both decoders."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latents.clip import ClipSpec, WindowSpec
from pipeline.decode import SoundPolicy

av = pytest.importorskip("av")

from pipeline import pyav_video  # noqa: E402 - it needs av
from tests.pipeline.numbered_clips import decode, only_clip  # noqa: E402

SIZE = 64
SPEC = ClipSpec(size=SIZE)
BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18

PATCHES = np.array(
    # Code values of 10 bits: luma 64..940, colour differences 64..960 around 512.
    [[64, 512, 512], [940, 512, 512], [520, 512, 512], [300, 420, 700], [600, 760, 400]]
)


def patches_in_rgb() -> np.ndarray:
    """(patch, channel), 0..255: ITU-R BT.2100, table 6 without the transfer function."""
    luma, blue, red = (PATCHES - [64, 512, 512]).T / np.array([[876], [896], [896]])
    red_weight, blue_weight = 0.2627, 0.0593
    r = luma + 2 * (1 - red_weight) * red
    b = luma + 2 * (1 - blue_weight) * blue
    g = (luma - red_weight * r - blue_weight * b) / (1 - red_weight - blue_weight)
    return np.clip(255 * np.stack([r, g, b], axis=1), 0, 255)


def write_frames(
    path: Path,
    frames: list[av.VideoFrame],
    *,
    codec: str = "ffv1",
    matrix: int = BT2020,
    signal_range: int = LIMITED,
    transfer: int | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = frames[0].format.name
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = signal_range
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            frame.colorspace, frame.color_range = matrix, signal_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patch_frame(patch: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame(SIZE, SIZE, "yuv420p10le")
    for plane, value in zip(frame.planes, patch, strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
    return frame


def decode_muted(path: Path, backend: str) -> np.ndarray:
    silence, window = SoundPolicy(missing="silence"), WindowSpec(frames=4)
    return only_clip(decode(path, spec=SPEC, window=window, sound=silence, backend=backend)).frames


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
def test_hdr_is_its_code_values_through_the_stated_matrix(
    tmp_path: Path, backend: str, transfer: int
) -> None:
    frames = [patch_frame(patch) for patch in PATCHES]
    path = write_frames(tmp_path / "hdr.mkv", frames, transfer=transfer)

    shown = decode_muted(path, backend)

    # All of a patch has one colour. swscale's fast path is up to 2.5 below the exact value.
    assert shown.std(axis=(2, 3)).max() == 0
    np.testing.assert_allclose(shown[:, :, 0, 0], patches_in_rgb(), atol=2.5)


def test_pq_and_hlg_of_the_same_code_values_are_the_same_picture(tmp_path: Path) -> None:
    shown = [
        decode_muted(
            write_frames(
                tmp_path / f"{transfer}.mkv",
                [patch_frame(patch) for patch in PATCHES],
                transfer=transfer,
            ),
            "pyav",
        )
        for transfer in (PQ, HLG)
    ]

    np.testing.assert_array_equal(*shown)


def textured(pixel_format: str) -> list[av.VideoFrame]:
    """Sharp edges in every colour, where decoders differ if they do."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    picture = np.stack([4 * columns, 4 * rows, (columns // 8 + rows // 8) % 2 * 255], axis=-1)
    return [
        av.VideoFrame.from_ndarray(
            np.roll(picture, shift, 1).astype(np.uint8), format="rgb24"
        ).reformat(format=pixel_format)
        for shift in range(5)
    ]


@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020])
@pytest.mark.parametrize(
    ("pixel_format", "signal_range"),
    [
        ("yuv420p", LIMITED),
        ("yuv420p", FULL),
        ("yuvj420p", FULL),
        ("yuv422p", LIMITED),
        ("yuvj422p", FULL),
        ("yuv444p", LIMITED),
        ("gray", LIMITED),
    ],
)
def test_what_decord_may_decode_has_the_colours_of_pyav(
    tmp_path: Path, pixel_format: str, signal_range: int, matrix: int
) -> None:
    decord_video = pytest.importorskip("pipeline.decord_video")
    path = write_frames(
        tmp_path / "textured.mkv",
        textured(pixel_format),
        codec="libx264",
        matrix=matrix,
        signal_range=signal_range,
    )
    probe = pyav_video.probe_video(str(path), SPEC, source="clip")

    theirs = [
        picture.render()
        for picture in decord_video.read_pictures(str(path), SPEC, probe=probe, source="clip")
    ]

    ours = [p.render() for p in pyav_video.read_pictures(str(path), SPEC, source="clip")]
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le"])
def test_pictures_of_ten_bits_are_left_to_pyav(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pixel_format: str
) -> None:
    pytest.importorskip("decord")
    path = write_frames(tmp_path / "deep.mkv", textured(pixel_format), codec="libx264")

    with caplog.at_level(logging.DEBUG, logger="pipeline.video_clips"):
        by_decord, by_pyav = (decode_muted(path, backend) for backend in ("decord", "pyav"))

    np.testing.assert_array_equal(by_decord, by_pyav)
    assert f"its colours ({pixel_format}) come out otherwise" in caplog.text
