"""From settings and encoder identity to the recipe of each field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from latents.fields import LEVELS, Level
from latents.mel import mel_spec
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import Canonical, Recipe, canonical_json, sha256_hex
from pipeline.settings import IngestSettings

VIDEO_IMPLEMENTATION = 1
"""Raised when decoding, frame picking or fitting changes its numbers."""
AUDIO_IMPLEMENTATION = 1
"""Raised when sound decoding or its alignment changes its numbers."""
KL_IMPLEMENTATION = 1
"""Raised when mel images or the encoding of images change their numbers."""


def clip_recipes(settings: IngestSettings) -> dict[str, Recipe]:
    """Recipes of ``clip.video`` and ``clip.audio``."""
    clip = settings.clip
    cut: dict[str, Canonical] = {
        "fps": clip.fps,
        "segment_frames": clip.segment_frames,
        "tail_frames": clip.tail_frames,
        "picking": "latest picture shown at the frame's time",
    }
    return {
        "clip.video": Recipe(
            field="clip.video",
            implementation=VIDEO_IMPLEMENTATION,
            specification={
                **cut,
                "size": clip.size,
                "fit": clip.fit,
                "resize": "pillow bicubic",
                "decode": {"backend": settings.decode.backend, "fallback": "pyav"},
            },
        ),
        "clip.audio": Recipe(
            field="clip.audio",
            implementation=AUDIO_IMPLEMENTATION,
            specification={**cut, "decode": {"backend": "pyav", "rate": "native"}},
        ),
    }


def kl_recipes(settings: IngestSettings, encoder: EncoderIdentity) -> dict[str, Recipe]:
    """Recipes of ``kl.video`` and ``kl.audio``."""
    clip = clip_recipes(settings)
    window: dict[str, Canonical] = {
        "frames": settings.window.frames,
        "stride": settings.window.stride,
    }
    kl_vae: dict[str, Canonical] = {
        **encoder.specification(),
        "precision": settings.kl_vae.precision,
    }
    return {
        "kl.video": Recipe(
            field="kl.video",
            implementation=KL_IMPLEMENTATION,
            specification={"kl_vae": kl_vae},
            parents=(clip["clip.video"],),
        ),
        "kl.audio": Recipe(
            field="kl.audio",
            implementation=KL_IMPLEMENTATION,
            specification={
                "kl_vae": kl_vae,
                "mel": {**mel_spec(settings.mel.name).canonical},
                "window": window,
            },
            parents=(clip["clip.audio"],),
        ),
    }


def wanted_recipes(
    settings: IngestSettings, encoder: EncoderIdentity, levels: Sequence[Level]
) -> dict[str, Recipe]:
    """Recipes of every field of the levels asked for."""
    known = clip_recipes(settings) | kl_recipes(settings, encoder)
    return {field: known[field] for level in levels for field in LEVELS[level]}


def segmentation_digest(settings: IngestSettings) -> str:
    """What the number of segments of a source depends on."""
    clip = settings.clip
    return sha256_hex(
        canonical_json(
            {
                "fps": clip.fps,
                "segment_frames": clip.segment_frames,
                "tail_frames": clip.tail_frames,
            }
        )
    )


def admission_digest(settings: IngestSettings) -> str:
    """What it depends on whether a source or segment is accepted by decoding."""
    clip = clip_recipes(settings)
    return sha256_hex(
        canonical_json(
            {
                "clip": [recipe.digest for recipe in clip.values()],
                "window_frames": settings.window.frames,
                "sound": asdict(settings.sound),
            }
        )
    )


def library_versions(*names: str) -> str:
    """``name version`` of installed libraries, for the record."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def decode_versions() -> str:
    """Versions whose change re-opens what decoding quarantined."""
    return library_versions("av", "decord", "pillow")


def encode_versions() -> str:
    """Versions recorded with every latent."""
    return library_versions("torch", "diffusers", "torchaudio", "librosa")
