"""The settings a cache was made with, read back from its recipes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from latents.cache.layout import CacheLayout
from latents.cache.refs import ancestral_recipes, read_recipe, read_ref, require_ref
from latents.clip import ClipSpec, WindowSpec
from latents.errors import CacheError, ModelError
from latents.mel import MelSpec, mel_spec
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import Recipe, canonical_json
from pipeline.decode import SoundPolicy
from pipeline.settings import MEL_NAMES, DecodeSettings, IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What the recipes of a ``kl`` level say."""

    clip: ClipSpec
    window: WindowSpec
    mel: MelSpec
    decode: DecodeSettings
    weights: str
    """Digest of the weights of the encoder, 64 hex digits."""
    clip_recipes: dict[str, str]
    """Recipe digests of the two fields that the level was made from."""

    @property
    def decoding(self) -> IngestSettings:
        """Settings that decode a source into the same clips; any sound will do, as it once did."""
        return IngestSettings(
            clip=self.clip,
            window=self.window,
            decode=self.decode,
            sound=SoundPolicy(missing="silence", silent="keep"),
        )


def read_recorded(layout: CacheLayout, *, video_recipe: str, audio_recipe: str) -> Recorded:
    """The settings behind the recipes of ``kl.video`` and ``kl.audio``, given by digest.

    Raises:
        CacheError: A recipe says what is not understood here.
    """
    video = read_recipe(layout, video_recipe)
    audio = read_recipe(layout, audio_recipe)
    with _understanding(layout):
        (clip_video,), (clip_audio,) = video.parents, audio.parents
        mel = dict(_table(audio)["mel"])
        return Recorded(
            clip=_clip_spec(clip_video),
            window=WindowSpec(**_table(audio)["window"]),
            mel=MelSpec(name="cached", **mel),
            decode=_decode_settings(clip_video),
            weights=_table(video)["kl_vae"]["weights"],
            clip_recipes={"clip.video": clip_video.digest, "clip.audio": clip_audio.digest},
        )


def recorded_settings(layout: CacheLayout) -> dict[str, Any]:
    """Tables of `IngestSettings` as the current recipes say, less where the models are.

    Raises:
        CacheError: No ingest has completed, or a recipe says what is not understood here.
    """
    recipes = ancestral_recipes(layout, require_ref(layout, "current"))
    with _understanding(layout):
        video = read_recipe(layout, recipes["clip.video"])
        tables: dict[str, Any] = {
            "clip": asdict(_clip_spec(video)),
            "decode": asdict(_decode_settings(video)),
        }
        if "kl.audio" in recipes:
            sound = _table(read_recipe(layout, recipes["kl.audio"]))
            tables["window"] = sound["window"]
            tables["kl_vae"] = {"precision": sound["kl_vae"]["precision"]}
            tables["mel"] = {"name": _mel_name(sound["mel"])}
        if "perceptual.audio" in recipes:
            encoder = _table(read_recipe(layout, recipes["perceptual.audio"]))["encoder"]
            tables["autoencoder"] = {"precision": encoder["precision"]}
    return tables


def recorded_kl_vae(layout: CacheLayout) -> EncoderIdentity | None:
    """The KL-VAE of the current latents; None where there are none."""
    recipes = ancestral_recipes(layout, read_ref(layout, "current"))
    if "kl.video" not in recipes:
        return None
    table = _table(read_recipe(layout, recipes["kl.video"]))
    with _understanding(layout):
        return EncoderIdentity.from_specification(table["kl_vae"])


def recorded_modal(layout: CacheLayout) -> ModalIdentity | None:
    """The modal encoders of the current perceptual level; None where there is none."""
    recipes = ancestral_recipes(layout, read_ref(layout, "current"))
    if not {"perceptual.video", "perceptual.audio"} <= recipes.keys():
        return None
    with _understanding(layout):
        video, audio = (
            ModalEncoderIdentity.from_specification(
                _table(read_recipe(layout, recipes[f"perceptual.{sense}"]))["encoder"]
            )
            for sense in ("video", "audio")
        )
        return ModalIdentity(video=video, audio=audio)


def require_encoder(recorded: Recorded, identity: EncoderIdentity, *, kl_vae: str) -> None:
    """Refuses a KL-VAE whose encoder did not make the latents; its decoder may be any.

    Args:
        recorded: What the cache says.
        identity: Of the KL-VAE that is to decode.
        kl_vae: What it is called, for the message.

    Raises:
        ModelError: The weights of the encoders differ.
    """
    if identity.weights_digest != recorded.weights:
        raise ModelError(
            f"{kl_vae}: the encoder of this KL-VAE has weights {identity.weights_digest[:12]}, but "
            f"the cache was encoded with {recorded.weights[:12]}, and one's latents mean nothing "
            "to the other's decoder; name the KL-VAE that made the cache with --kl-vae (with a "
            "fine-tuned decoder it still fits)"
        )


@contextmanager
def _understanding(layout: CacheLayout) -> Iterator[None]:
    """A recipe may hash to its name and still say anything."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CacheError(
            f"{layout.url}: a recipe of refs/current says what this version does not understand "
            f"({type(error).__name__}: {error}); use the version that wrote it, or ingest its "
            "sources into a new cache"
        ) from error


def _clip_spec(clip_video: Recipe) -> ClipSpec:
    cut = _table(clip_video)
    return ClipSpec(
        fps=cut["fps"],
        segment_seconds=cut["segment_frames"] // cut["fps"],
        tail_frames=cut["tail_frames"],
        size=cut["size"],
        fit=cut["fit"],
    )


def _decode_settings(clip_video: Recipe) -> DecodeSettings:
    return DecodeSettings(backend=_table(clip_video)["decode"]["backend"])


def _mel_name(canonical: dict[str, Any]) -> str:
    """The specification of these values; `CacheError` where none of today's has them."""
    for name in MEL_NAMES:
        if canonical_json({**mel_spec(name).canonical}) == canonical_json(canonical):
            return name
    raise CacheError(
        "the cache's mel images are of a specification that this version does not know; ingest "
        f"its sources into a new cache, with --set mel.name={'|'.join(MEL_NAMES)}"
    )


def _table(recipe: Recipe) -> dict[str, Any]:
    return dict(recipe.specification)
