"""The models that turn a DiT's latents into sound and pictures, and whether they belong to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evaluation.sampling.decode import Vocode, WindowDecoder
from latents.durable import reason
from latents.errors import ModelError
from latents.mel import MelSpec
from latents.models.autoencoder_files import load_signal_decoder
from latents.models.identity_memo import modal_identity
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import autoencoder_files
from latents.models.modal_encoder_files import modal_encoder_files
from latents.models.signal_decoder import SignalDecoder
from latents.models.vocoder import griffin_lim
from pipeline.job import LatentScale
from pipeline.recorded import RecordedEncoding
from training.dit.config import DiTConfig
from training.dit.files import dit_files


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSources:
    """Where the models are."""

    autoencoder: str
    """As `load_modal_encoders` takes it, with a signal decoder."""
    kl_vae: str
    """As `load_kl_vae` takes it."""
    vocoder: Path | None
    """A folder of a HiFi-GAN; None for Griffin-Lim."""


def load_window_decoder(
    config: DiTConfig, encoding: RecordedEncoding, sources: ModelSources, *, device: str
) -> WindowDecoder:
    """The decoder of a DiT's latents.

    What counts is who encoded the latents that the DiT was trained on: the encoders must be the
    same, decoders may have been trained further.

    Args:
        config: The DiT's.
        encoding: How its latents were made.
        sources: Where the models are.
        device: Where they run.

    Raises:
        ModelError: A model cannot be loaded, or is foreign to the latents.
    """
    require_autoencoder(encoding, sources.autoencoder)
    signal_decoder = load_signal_decoder(sources.autoencoder, device=device)
    _require_shapes(signal_decoder, config, encoding, sources.autoencoder)
    kl_vae = load_kl_vae(sources.kl_vae, device=device)
    recorded = encoding.encoders.kl_vae
    if kl_vae.identity.weights_digest != recorded.weights_digest:
        raise ModelError(
            f"{sources.kl_vae}: the encoder of this KL-VAE has weights "
            f"{kl_vae.identity.weights_digest[:12]}, but the latents were made with "
            f"{recorded.weights_digest[:12]}, and one's latents mean nothing to the other's "
            "decoder; name the KL-VAE of their cache with --kl-vae (with a fine-tuned decoder "
            "it still fits)"
        )
    return WindowDecoder(
        signal_decoder=signal_decoder,
        kl_vae=kl_vae,
        vocode=_vocoder(sources.vocoder, encoding.kl.mel, device=device),
        scale=LatentScale(factor=recorded.scaling_factor, shift=recorded.shift_factor),
        recorded=encoding.kl,
        device=device,
    )


def require_autoencoder(encoding: RecordedEncoding, source: str) -> None:
    """Refuses an autoencoder whose encoders did not make the latents; its decoder may be any.

    Raises:
        ModelError: It cannot be loaded, or the weights of an encoder differ.
    """
    found, wanted = modal_identity(source), encoding.encoders.modal
    assert wanted is not None
    for sense, one, other in (
        ("video", found.video, wanted.video),
        ("audio", found.audio, wanted.audio),
    ):
        if one.weights_digest != other.weights_digest:
            raise ModelError(
                f"{source}: the {sense} encoder of this autoencoder has weights "
                f"{one.weights_digest[:12]}, but the latents were made with "
                f"{other.weights_digest[:12]}, and one's latents mean nothing to the other's "
                "decoder; name the autoencoder of their cache with --autoencoder (with a "
                "fine-tuned decoder it still fits)"
            )


def model_digests(dit: str | Path, sources: ModelSources) -> dict[str, str]:
    """SHA-256 of the files of each model that a sample depends on.

    Args:
        dit: As `load_dit` takes it.
        sources: Where the others are.

    Raises:
        ModelError: A file cannot be read.
    """
    files = {
        "dit": dit_files(dit),
        "autoencoder": modal_encoder_files(sources.autoencoder),
        "kl_vae": autoencoder_files(sources.kl_vae),
    }
    digests = {name: _files_digest(*paths) for name, paths in files.items()}
    if sources.vocoder is None:
        return digests | {"vocoder": "griffin-lim"}
    from evaluation.sampling.hifigan import hifigan_files

    return digests | {"vocoder": _files_digest(*hifigan_files(sources.vocoder))}


def _files_digest(config: Path, weights: Path) -> str:
    digest = hashlib.sha256()
    for path in (config, weights):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({reason(error)})") from error
    return digest.hexdigest()


def _require_shapes(
    decoder: SignalDecoder, config: DiTConfig, encoding: RecordedEncoding, source: str
) -> None:
    found = decoder.config.latent_channels, decoder.config.frames
    wanted = config.latent_channels, encoding.kl.window.frames
    if found != wanted:
        raise ModelError(
            f"{source}: its signal decoder reads latents of {found[0]} channels and gives windows "
            f"of {found[1]} frames, but the DiT's have {wanted[0]} and {wanted[1]}; name the "
            "autoencoder of the DiT's cache with --autoencoder"
        )


def _vocoder(folder: Path | None, mel: MelSpec, *, device: str) -> Vocode:
    if folder is None:
        return partial(griffin_lim, spec=mel)
    # Here, not at the top: it brings transformers, which Griffin-Lim does not need.
    from evaluation.sampling.hifigan import load_hifigan

    return load_hifigan(folder, mel, device=device)
