"""Pictures, sound, mel images and moments stay what they were when they were recorded.

An upgrade of a library, or of this project, that changes them is found here, and the message says
what to do. Pictures are compared byte by byte on the kind of machine on which they were recorded,
and so is sound whose samples are integers. The rest is floating point, whose last bits depend on
the processor: it has a tolerance, stated with what was measured.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from latents.clip import Clip
from latents.recipe import sha256_hex
from pipeline import pyav_video
from pipeline.settings import MEL_NAMES
from scripts.golden_observations import (
    BACKENDS,
    CLIP_SPEC,
    GOLDEN_FOLDER,
    decode_golden,
    decode_versions,
    describe_frames,
    describe_waveform,
    encode_versions,
    mel_image,
    thin_frames,
    thin_image,
    thin_waveform,
    tiny_moments,
)

RECORDED: dict[str, Any] = json.loads((GOLDEN_FOLDER / "decode.json").read_bytes())
VIDEOS: dict[str, dict[str, Any]] = RECORDED["videos"]
DECODED_WITH: dict[str, str] = RECORDED["decoded_with"]
ENCODED_WITH: dict[str, str] = RECORDED["encoded_with"]
THINNED = load_file(GOLDEN_FOLDER / "decode.safetensors")
ENCODED = load_file(GOLDEN_FOLDER / "encode.safetensors")

SOUND_TOLERANCE = 1e-6
"""FFmpeg's AAC in plain C, SSE or AVX differs from AVX with FMA by up to 2.4e-7. Opus is decoded by
libopus in integers."""
OTHER_MACHINE_MAX, OTHER_MACHINE_MEAN = 8, 1.0
"""Of 255. libswscale in plain C differs from its x86 code by up to 4, and 0.53 in the mean."""
MEL_MAX, MEL_SHARE = 1, 0.005
"""Levels, and share of the pixels. With SSE alone 0.05 % differed from AVX-512, all by 1."""
MOMENTS_TOLERANCE = {"video": 1e-3, "audio": 0.05}
"""Beside the rounding to float16. Of the same picture, two threads or other instructions than
AVX-512 differ by up to 7e-5; where SSE changed pixels of the mel image, this became 0.011."""


@cache
def decoded(name: str, backend: str) -> Clip:
    return decode_golden(GOLDEN_FOLDER / name, backend)


def changed_versions(recorded: Mapping[str, str], installed: Mapping[str, str]) -> str:
    changes = [
        f"{name} {recorded.get(name)} -> {installed.get(name)}"
        for name in sorted(recorded.keys() | installed.keys())
        if recorded.get(name) != installed.get(name)
    ]
    return ", ".join(changes) or "none, so this project's code or the processor made the difference"


def advice(implementation: str) -> str:
    return (
        f"If the new values are meant, raise {implementation} in pipeline/recipes.py, so that they "
        "are never mixed with those in existing caches, say so in CHANGELOG.md, and run "
        "scripts/make_golden.py. If not, keep the library at the version recorded (pyproject.toml, "
        "constraints.txt), or undo the change."
    )


def difference(found: NDArray[Any], recorded: NDArray[Any]) -> tuple[float, float]:
    """Largest and mean absolute difference; infinite where the shapes differ."""
    if found.shape != recorded.shape:
        return np.inf, np.inf
    distance = np.abs(found.astype(np.float64) - recorded)
    return float(distance.max()), float(distance.mean())


def check_frames(clip: Clip, name: str, backend: str, machine: str) -> None:
    """Fails unless the frames are those recorded."""
    found, recorded = describe_frames(clip), VIDEOS[name]["frames"][backend]
    if found["sha256"] == recorded["sha256"]:
        return
    largest, mean = difference(thin_frames(clip.frames), THINNED[f"{name}/frames/{backend}"])
    is_near = largest <= OTHER_MACHINE_MAX and mean <= OTHER_MACHINE_MEAN
    if machine != DECODED_WITH["machine"] and is_near:
        return
    raise AssertionError(
        f"{name} by {backend}: its frames are not those recorded.\n"
        f"Libraries, recorded -> installed: {changed_versions(DECODED_WITH, decode_versions())}.\n"
        f"Shape {recorded['shape']} -> {found['shape']}; mean colour {recorded['mean']} -> "
        f"{found['mean']}; at every eighth pixel of every fifth frame they differ by up to "
        f"{largest:g}, {mean:.3g} in the mean, of 255.\n{advice('VIDEO_IMPLEMENTATION')}"
    )


def check_waveform(clip: Clip, name: str) -> None:
    """Fails unless the sound is what was recorded, up to the last bits of a lossy codec."""
    found, recorded = describe_waveform(clip), VIDEOS[name]["waveform"]
    if found["sha256"] == recorded["sha256"]:
        return
    largest, mean = difference(thin_waveform(clip.waveform), THINNED[f"{name}/waveform"])
    is_laid_out_alike = all(found[part] == recorded[part] for part in ("shape", "sample_rate"))
    is_exact = VIDEOS[name]["is_lossless_sound"]
    if is_laid_out_alike and not is_exact and largest <= SOUND_TOLERANCE:
        return
    raise AssertionError(
        f"{name}: its sound is not what was recorded.\n"
        f"Libraries, recorded -> installed: {changed_versions(DECODED_WITH, decode_versions())}.\n"
        f"Shape {recorded['shape']} -> {found['shape']}, {recorded['sample_rate']} -> "
        f"{found['sample_rate']} Hz, {recorded['loudness_dbfs']} -> {found['loudness_dbfs']} dBFS; "
        f"at every 32nd sample it differs by up to {largest:.3g}, {mean:.3g} in the mean, of full "
        f"scale 1; {0.0 if is_exact else SOUND_TOLERANCE:g} is allowed.\n"
        f"{advice('AUDIO_IMPLEMENTATION')}"
    )


def encoding_message(what: str, differs: str) -> str:
    return (
        f"{what} is not what was recorded: {differs}.\n"
        f"Libraries, recorded -> installed: {changed_versions(ENCODED_WITH, encode_versions())}.\n"
        "It is made from decoded pictures and sound: if those tests fail too, begin with them.\n"
        f"{advice('KL_IMPLEMENTATION')}"
    )


def check_mel_image(image: NDArray[np.uint8], mel_name: str) -> None:
    """Fails unless nearly all levels are those recorded, and the others next to them."""
    found, recorded = thin_image(image), ENCODED[f"mel/{mel_name}"]
    largest, _ = difference(found, recorded)
    share = np.inf if found.shape != recorded.shape else float(np.mean(found != recorded))
    is_near = largest <= MEL_MAX and share <= MEL_SHARE
    assert is_near, encoding_message(
        f"The mel image {mel_name}",
        f"{share:.2%} of its pixels differ, by up to {largest:g} levels; {MEL_SHARE:.2%} may, by "
        f"{MEL_MAX}",
    )


def check_moments(moments: NDArray[np.float32], field: str) -> None:
    """Fails unless moments are those recorded, up to rounding."""
    recorded = ENCODED[f"moments/{field}"]
    largest, mean = difference(moments, recorded)
    rounding = np.abs(recorded.astype(np.float64)) * 2**-11
    is_near = np.isfinite(largest) and bool(
        (np.abs(moments - recorded) <= rounding + MOMENTS_TOLERANCE[field]).all()
    )
    assert is_near, encoding_message(
        f"The bundled KL-VAE's kl.{field}",
        f"its moments differ by up to {largest:.3g}, {mean:.3g} in the mean; "
        f"{MOMENTS_TOLERANCE[field]:g} and the rounding to float16 are allowed",
    )


@pytest.mark.parametrize("name", VIDEOS)
def test_the_golden_videos_are_the_files_recorded(name: str) -> None:
    assert sha256_hex((GOLDEN_FOLDER / name).read_bytes()) == VIDEOS[name]["file"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VIDEOS)
def test_pictures_are_those_recorded(name: str, backend: str) -> None:
    check_frames(decoded(name, backend), name, backend, platform.machine())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VIDEOS)
def test_sound_is_what_was_recorded(name: str, backend: str) -> None:
    check_waveform(decoded(name, backend), name)


@pytest.mark.skipif("decord" not in BACKENDS, reason="decord has wheels for x86_64 alone")
@pytest.mark.parametrize("name", VIDEOS)
def test_decord_decodes_every_golden_video_itself(name: str) -> None:
    from pipeline import decord_video

    path = str(GOLDEN_FOLDER / name)
    probe = pyav_video.probe_video(path, CLIP_SPEC, source=name)

    # A refusal would raise here; elsewhere PyAV takes over in silence.
    pictures = list(decord_video.read_pictures(path, CLIP_SPEC, probe=probe, source=name))

    assert len(pictures) == len(list(pyav_video.read_pictures(path, CLIP_SPEC, source=name)))


@pytest.mark.parametrize("mel_name", MEL_NAMES)
def test_mel_images_are_those_recorded(mel_name: str) -> None:
    check_mel_image(mel_image(mel_name), mel_name)


def test_the_bundled_encoders_moments_are_those_recorded() -> None:
    for field, moments in tiny_moments().items():
        check_moments(moments, field)


# The checks themselves: that they can fail, and what they say.


def test_one_changed_pixel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = decoded("reordered.mp4", "pyav")
    frames = clip.frames.copy()
    frames[5, 1, 104, 96] ^= 4
    monkeypatch.setitem(DECODED_WITH, "libswscale", "9.0.100")

    with pytest.raises(AssertionError) as caught:
        check_frames(replace(clip, frames=frames), "reordered.mp4", "pyav", DECODED_WITH["machine"])

    message = str(caught.value)
    assert message.startswith("reordered.mp4 by pyav: its frames are not those recorded.")
    assert f"libswscale 9.0.100 -> {decode_versions()['libswscale']}" in message
    assert "differ by up to 4, 0.000326 in the mean" in message  # 4 / (4 * 3 * 32 * 32)
    assert "raise VIDEO_IMPLEMENTATION in pipeline/recipes.py" in message
    assert "scripts/make_golden.py" in message


def test_the_next_picture_in_a_frames_place_is_found_on_any_machine() -> None:
    clip = decoded("uneven.mkv", "pyav")
    late = replace(clip, frames=np.roll(clip.frames, -1, axis=0))

    with pytest.raises(AssertionError):
        check_frames(late, "uneven.mkv", "pyav", "another")


def test_other_rounding_of_colours_is_accepted_of_another_machine_alone() -> None:
    clip = decoded("reordered.mp4", "pyav")
    brighter = replace(clip, frames=clip.frames + (clip.frames < 250))

    check_frames(brighter, "reordered.mp4", "pyav", "another")
    with pytest.raises(AssertionError, match="mean colour"):
        check_frames(brighter, "reordered.mp4", "pyav", DECODED_WITH["machine"])


@pytest.mark.parametrize(
    ("name", "gain"),
    [("reordered.mp4", 1 + 1e-5), ("odd.webm", 1 + 1e-5), ("uneven.mkv", 1 + 1e-7)],
)
def test_sound_with_another_gain_is_found(name: str, gain: float) -> None:
    clip = decoded(name, "pyav")

    with pytest.raises(AssertionError, match="raise AUDIO_IMPLEMENTATION"):
        check_waveform(replace(clip, waveform=clip.waveform * np.float32(gain)), name)


def test_the_last_bits_of_a_lossy_codec_are_left_to_the_processor() -> None:
    clip = decoded("reordered.mp4", "pyav")

    check_waveform(replace(clip, waveform=clip.waveform * np.float32(1 + 1e-7)), "reordered.mp4")


def test_sound_a_sample_late_is_found() -> None:
    clip = decoded("turned.mp4", "pyav")

    with pytest.raises(AssertionError, match="its sound is not what was recorded"):
        check_waveform(replace(clip, waveform=np.roll(clip.waveform, 1, axis=1)), "turned.mp4")


def test_a_mel_image_of_another_mel_is_found() -> None:
    with pytest.raises(AssertionError, match="raise KL_IMPLEMENTATION"):
        check_mel_image(mel_image("paper44k"), "hifigan22k")


@pytest.mark.parametrize("field", MOMENTS_TOLERANCE)
def test_other_moments_are_found(field: str) -> None:
    moments = ENCODED[f"moments/{field}"].astype(np.float32)
    check_moments(moments, field)
    moments[6, 20, 3] += 0.1

    with pytest.raises(AssertionError, match=f"kl.{field} is not what was recorded"):
        check_moments(moments, field)
