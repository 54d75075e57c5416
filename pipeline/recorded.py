"""The settings that latents were made with, read back from their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from latents.cache.layout import CacheLayout
from latents.cache.refs import ancestral_recipes, read_recipe, read_ref, require_ref
from latents.clip import ClipSpec, WindowSpec
from latents.errors import CacheError, ConfigError, ModelError
from latents.mel import MelSpec, mel_spec
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae_identity import EncoderIdentity
from latents.recipe import Recipe, canonical_json, is_sha256_hex
from pipeline.decode import SoundPolicy
from pipeline.recipes import Encoders
from pipeline.settings import (
    MEL_NAMES,
    AutoencoderSettings,
    DecodeSettings,
    IngestSettings,
    KLVAESettings,
    MelName,
    MelSettings,
    Precision,
)

# What a recipe gives that hashes to its name and says something else.
_FOREIGN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedEncoding:
    """What the recipes of a ``perceptual`` level say, with those that it was made from."""

    kl: Recorded
    encoders: Encoders
    kl_vae_precision: Precision
    is_compiled: bool
    modal_precision: Precision

    def settings(
        self, *, kl_vae: str, autoencoder: str, sound: SoundPolicy, device: str
    ) -> IngestSettings:
        """Settings that encode a source into the same latents.

        Args:
            kl_vae: Where the KL-VAE is; that it is the recorded one is not looked at.
            autoencoder: The same of the modal encoders.
            sound: Which sources are accepted.
            device: Where to encode.

        Raises:
            ConfigError: The mel images are of a specification that none of today's has.
        """
        mel = _name_of_mel(self.kl.mel.canonical)
        if mel is None:
            raise ConfigError(
                "the latents' mel images are of a specification that this version does not know "
                f"(it knows {', '.join(MEL_NAMES)}), so no file can be encoded like them; use the "
                "version that wrote them"
            )
        base = self.kl.decoding
        return replace(
            base,
            mel=MelSettings(name=mel),
            kl_vae=KLVAESettings(
                source=kl_vae, precision=self.kl_vae_precision, compile=self.is_compiled
            ),
            autoencoder=AutoencoderSettings(source=autoencoder, precision=self.modal_precision),
            sound=sound,
            run=replace(base.run, device=device),
        )


def recorded_encoding(recipes: Mapping[str, Recipe], *, model: str) -> RecordedEncoding:
    """The settings behind the recipes of both fields of the ``perceptual`` level.

    Args:
        recipes: By field.
        model: The model that carries them, for the message.

    Raises:
        ModelError: A recipe says what is not understood here.
    """
    try:
        return _encoding(recipes)
    except _FOREIGN as error:
        raise ModelError(
            f"{model}: the recipes of the latents it was trained on say what this version does "
            f"not understand ({type(error).__name__}: {error}); use the version that wrote them"
        ) from error


def _encoding(recipes: Mapping[str, Recipe]) -> RecordedEncoding:
    video, audio = recipes["perceptual.video"], recipes["perceptual.audio"]
    above = {parent.field: parent for parent in (*video.parents, *audio.parents)}
    kl_video, kl_audio = above["kl.video"], above["kl.audio"]
    if _table(kl_video)["kl_vae"] != _table(kl_audio)["kl_vae"]:
        raise ValueError("pictures and sound were encoded by different KL-VAEs")
    precisions = [_table(one)["encoder"]["precision"] for one in (video, audio)]
    if precisions[0] != precisions[1]:
        raise ValueError("pictures and sound were encoded in different precisions")
    kl_vae = EncoderIdentity.from_specification(_table(kl_video)["kl_vae"])
    modal = _modal(video, audio)
    weights = (kl_vae.weights_digest, modal.video.weights_digest, modal.audio.weights_digest)
    if not all(map(is_sha256_hex, weights)):
        raise ValueError("the weights of an encoder are not named by their SHA-256")
    return RecordedEncoding(
        kl=_kl_level(kl_video, kl_audio),
        encoders=Encoders(kl_vae=kl_vae, modal=modal),
        kl_vae_precision=_table(kl_video)["kl_vae"]["precision"],
        is_compiled=_table(kl_video)["kl_vae"].get("compiled", False),
        modal_precision=precisions[0],
    )


def read_recorded(layout: CacheLayout, *, video_recipe: str, audio_recipe: str) -> Recorded:
    """The settings behind the recipes of ``kl.video`` and ``kl.audio``, given by digest.

    Raises:
        CacheError: A recipe says what is not understood here.
    """
    video = read_recipe(layout, video_recipe)
    audio = read_recipe(layout, audio_recipe)
    with _understanding(layout):
        return _kl_level(video, audio)


def _kl_level(video: Recipe, audio: Recipe) -> Recorded:
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
            tables["kl_vae"] = {
                "precision": sound["kl_vae"]["precision"],
                "compile": sound["kl_vae"].get("compiled", False),
            }
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
        return _modal(
            read_recipe(layout, recipes["perceptual.video"]),
            read_recipe(layout, recipes["perceptual.audio"]),
        )


def _modal(video: Recipe, audio: Recipe) -> ModalIdentity:
    return ModalIdentity(
        video=ModalEncoderIdentity.from_specification(_table(video)["encoder"]),
        audio=ModalEncoderIdentity.from_specification(_table(audio)["encoder"]),
    )


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
    except _FOREIGN as error:
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
    name = _name_of_mel(canonical)
    if name is None:
        raise CacheError(
            "the cache's mel images are of a specification that this version does not know; ingest "
            f"its sources into a new cache, with --set mel.name={'|'.join(MEL_NAMES)}"
        )
    return name


def _name_of_mel(canonical: Mapping[str, Any]) -> MelName | None:
    for name in MEL_NAMES:
        if canonical_json({**mel_spec(name).canonical}) == canonical_json(canonical):
            return name
    return None


def _table(recipe: Recipe) -> dict[str, Any]:
    return dict(recipe.specification)
