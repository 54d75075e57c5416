"""From settings and encoder identity to the recipe of each field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from latents.errors import ConfigError
from latents.fields import LEVELS, Level
from latents.mel import mel_spec
from latents.models.frozen_modal_encoders import ModalIdentity
from latents.models.kl_vae_identity import EncoderIdentity
from latents.recipe import Canonical, Recipe, canonical_json, sha256_hex
from pipeline.calibration_bounds import BOUNDS, wants_calibration
from pipeline.precision import precisions
from pipeline.settings import IngestSettings

VIDEO_IMPLEMENTATION = 2
"""Raised when decoding, frame picking or fitting changes its numbers."""
AUDIO_IMPLEMENTATION = 3
"""Raised when sound decoding or its alignment changes its numbers. Where it moves the frames beside
which there is sound, so must the one above be: every row records them, and windows lie in them."""
KL_IMPLEMENTATION = 1
"""Raised when mel images or the encoding of images change their numbers."""
PERCEPTUAL_IMPLEMENTATION = 1
"""Raised when the modal encoders, or what they are given, change their numbers."""


LATENT_PIXELS = 8
"""Pixels along the side of one position of a KL latent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """Identities of the encoders of an ingest or refresh."""

    kl_vae: EncoderIdentity
    modal: ModalIdentity | None
    """None where no perceptual level is made."""


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
    kl_vae: dict[str, Canonical] = {
        **encoder.specification(),
        "precision": precisions(settings).kl,
    }
    if settings.kl_vae.compile:
        kl_vae["compiled"] = True
    if wants_calibration(settings):
        # The bounds and not what was measured, which differs a little each time.
        kl_vae["calibrated"] = {**BOUNDS.canonical}
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
                "window": _window(settings),
            },
            parents=(clip["clip.audio"],),
        ),
    }


def perceptual_recipes(settings: IngestSettings, encoders: Encoders) -> dict[str, Recipe]:
    """Recipes of ``perceptual.video`` and ``perceptual.audio``."""
    assert encoders.modal is not None
    kl = kl_recipes(settings, encoders.kl_vae)
    sound = clip_recipes(settings)["clip.audio"]
    of_sense = {
        # Which windows there are depends on where there is sound, so that is a parent of both.
        "video": (encoders.modal.video, (kl["kl.video"], sound)),
        "audio": (encoders.modal.audio, (kl["kl.audio"],)),
    }
    return {
        f"perceptual.{sense}": Recipe(
            field=f"perceptual.{sense}",
            implementation=PERCEPTUAL_IMPLEMENTATION,
            specification={
                "encoder": {
                    **identity.specification(),
                    "precision": precisions(settings).modal,
                },
                "window": _window(settings),
            },
            parents=parents,
        )
        for sense, (identity, parents) in of_sense.items()
    }


def require_fitting(settings: IngestSettings, modal: ModalIdentity) -> None:
    """Refuses settings whose windows the modal encoders cannot read.

    Raises:
        ConfigError: They read windows of another length, or latents of another size.
    """
    window_frames, latent_size = settings.window.frames, settings.clip.size // LATENT_PIXELS
    found = modal.video.config["frames"], modal.video.config["in_size"]
    if found != (window_frames, latent_size):
        raise ConfigError(
            f"the video encoder reads windows of {found[0]} frames and KL latents of {found[1]} x "
            f"{found[1]}, but window.frames is {window_frames}, and clip.size {settings.clip.size} "
            f"gives latents of {latent_size} x {latent_size}; name an autoencoder that was trained "
            "for these with --autoencoder, or leave the perceptual level out with --levels"
        )


def _window(settings: IngestSettings) -> dict[str, Canonical]:
    return {"frames": settings.window.frames, "stride": settings.window.stride}


def wanted_recipes(
    settings: IngestSettings, encoders: Encoders, levels: Sequence[Level]
) -> dict[str, Recipe]:
    """Recipes of every field of the levels asked for."""
    known = clip_recipes(settings) | kl_recipes(settings, encoders.kl_vae)
    if "perceptual" in levels:
        known |= perceptual_recipes(settings, encoders)
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
    """What it depends on whether a source or segment is accepted by decoding.

    Digest of the clip's recipes and the window's length, ``+``, digest of the sound policy.
    """
    clip = clip_recipes(settings)
    cut: list[Canonical] = [recipe.digest for recipe in clip.values()]
    parts = ([*cut, settings.window.frames], asdict(settings.sound))
    return "+".join(sha256_hex(canonical_json(part)) for part in parts)


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
