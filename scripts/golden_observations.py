"""What decoders, mels and the KL-VAE make of the golden videos, and the identity of settings."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from latents.clip import Clip, ClipSpec, WindowSpec, loudness_dbfs
from latents.config import load_config
from latents.fields import LEVELS
from latents.mel import downmix, mel_spec, resample, window_image
from latents.models.kl_vae import load_kl_vae
from latents.recipe import Recipe, sha256_hex
from pipeline.decode import Backend, SoundPolicy, SourceTask, decode_source
from pipeline.recipes import Encoders, admission_digest, segmentation_digest, wanted_recipes
from pipeline.settings import IngestSettings

GOLDEN_FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
BACKENDS: tuple[Backend, ...] = (
    # decord has wheels for nothing else.
    ("decord", "pyav") if platform.machine() == "x86_64" else ("pyav",)
)
CLIP_SPEC = ClipSpec()
WINDOW_SPEC = WindowSpec()

_SOUND_VIDEO = "turned.mp4"  # stereo at 48 kHz: mixed down, and resampled for every mel
_PICTURE_VIDEO = "odd.webm"  # FFmpeg converts odd sizes alike on every processor
_PICTURE_INDEX = 10
_ENCODED_MEL = "hifigan22k"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a cache made with some settings is known by."""

    recipes: dict[str, Recipe]
    """Of every field of every level."""
    segmentation: str
    """SHA-256, 64 hex digits."""
    admission: str
    """SHA-256, 64 hex digits."""


def decode_golden(path: Path, backend: Backend) -> Clip:
    """The one clip of a golden video."""
    task = SourceTask(uri=path.name, path=str(path), scene=None, digest="0" * 64)
    clip, *rest = decode_source(
        task, clip_spec=CLIP_SPEC, window_spec=WINDOW_SPEC, sound=SoundPolicy(), backend=backend
    )
    if not isinstance(clip, Clip) or len(rest) != 1:
        raise RuntimeError(f"{path}: wanted one clip, found {[clip, *rest]}")
    return clip


def describe_frames(clip: Clip) -> dict[str, Any]:
    """Digest, shape and mean colour (red, green, blue; 0..255) of a clip's pictures, for JSON."""
    return {
        "sha256": sha256_hex(clip.frames.tobytes()),
        "shape": list(clip.frames.shape),
        "mean": [round(float(mean), 2) for mean in clip.frames.mean(axis=(0, 2, 3))],
    }


def describe_waveform(clip: Clip) -> dict[str, Any]:
    """Digest, shape, rate in Hz and loudness of a clip's sound, for JSON."""
    return {
        "sha256": sha256_hex(clip.waveform.tobytes()),
        "shape": list(clip.waveform.shape),
        "sample_rate": clip.sample_rate,
        "loudness_dbfs": round(loudness_dbfs(clip.waveform), 2),
    }


def thin_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every eighth pixel of every fifth frame."""
    return np.ascontiguousarray(frames[::5, :, ::8, ::8])


def thin_waveform(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every 32nd sample."""
    return np.ascontiguousarray(waveform[:, ::32])


def mel_image(mel_name: str, folder: Path = GOLDEN_FOLDER) -> NDArray[np.uint8]:
    """The mel image, RGB (3, 256, 256), of the first window of one golden video."""
    clip = decode_golden(folder / _SOUND_VIDEO, "pyav")
    spec = mel_spec(mel_name)
    mono = resample(downmix(torch.from_numpy(clip.waveform)), clip.sample_rate, spec.sample_rate)
    num_samples = CLIP_SPEC.num_samples(WINDOW_SPEC.frames, spec.sample_rate)
    image: NDArray[np.uint8] = window_image(mono[:num_samples], spec).numpy()
    return image


def thin_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every fourth pixel of a grey image (3, height, width), as (height / 4, width / 4)."""
    return np.ascontiguousarray(image[0, ::4, ::4])


def tiny_moments(folder: Path = GOLDEN_FOLDER) -> dict[str, NDArray[np.float32]]:
    """Moments (8, 32, 32) by the bundled KL-VAE of one frame, ``video``, and one mel, ``audio``."""
    frame = decode_golden(folder / _PICTURE_VIDEO, "pyav").frames[_PICTURE_INDEX]
    images = np.stack([frame, mel_image(_ENCODED_MEL, folder)])
    video, audio = load_kl_vae("tiny").encode(torch.from_numpy(images)).numpy()
    return {"video": video, "audio": audio}


def identity_of(
    encoders: Encoders, *, presets: Sequence[str], overrides: Sequence[str]
) -> Identity:
    """The identity of a cache of every level, made with these settings."""
    settings = load_config(IngestSettings, kind="ingest", presets=presets, overrides=overrides)
    return Identity(
        recipes=wanted_recipes(settings, encoders, tuple(LEVELS)),
        segmentation=segmentation_digest(settings),
        admission=admission_digest(settings),
    )


def decode_versions() -> dict[str, str]:
    """Versions of what decodes: packages, FFmpeg's libraries in PyAV, and the machine."""
    ffmpeg = {
        name: ".".join(map(str, av.library_versions[name]))
        for name in ("libavcodec", "libavformat", "libswscale")
    }
    return {**_machine(), **_package_versions("av", "decord", "pillow"), **ffmpeg}


def encode_versions() -> dict[str, str]:
    """Versions of what draws mel images and encodes, and the machine."""
    packages = ("torch", "torchaudio", "librosa", "diffusers", "pillow")
    return {**_machine(), **_package_versions(*packages)}


def _machine() -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _package_versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
