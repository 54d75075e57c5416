"""A small multi-modal autoencoder: two modal encoders and a signal decoder, in one folder.

The folder is the one that `load_modal_encoders` reads; the decoder is a further table of its
``config.json`` and a further prefix in its ``model.safetensors``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from latents.errors import ModelError
from latents.models.encoder_blocks import draw_weights
from latents.models.modal_encoder_config import AudioEncoderConfig, VideoEncoderConfig
from latents.models.modal_encoder_files import (
    load_modal_encoders,
    modal_encoder_files,
    save_modal_encoders,
)
from latents.models.modal_encoders import AudioEncoder, VideoEncoder
from latents.models.signal_decoder import (
    AUDIO_STRIDE,
    VIDEO_STRIDE,
    SignalDecoder,
    SignalDecoderConfig,
)

_DECODER = "signal_decoder"
_FIRST_LOGVAR = -6.0
"""Log-variances start here: at 0, the noise would be as large as what the linear codec codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Architectures of the three parts."""

    video_encoder: VideoEncoderConfig
    audio_encoder: AudioEncoderConfig
    signal_decoder: SignalDecoderConfig

    def __post_init__(self) -> None:
        decoder = self.signal_decoder
        for name in ("video_encoder", "audio_encoder"):
            encoder = getattr(self, name)
            found = (encoder.out_channels, encoder.in_channels)
            if found != (decoder.latent_channels, decoder.out_channels):
                raise ValueError(f"{name} and signal_decoder differ in their numbers of channels")
        strides = [2 ** (len(e.multipliers) - 1) for e in (self.video_encoder, self.audio_encoder)]
        if strides != [VIDEO_STRIDE, AUDIO_STRIDE]:
            raise ValueError(
                f"the encoders shrink KL latents by {strides}; the decoder enlarges them by "
                f"{VIDEO_STRIDE} and {AUDIO_STRIDE}"
            )
        if self.video_encoder.frames != decoder.frames:
            raise ValueError("video_encoder and signal_decoder differ in their windows")


def tiny_autoencoder_config(
    *,
    frames: int = 16,
    kl_channels: int = 4,
    video_size: int = 32,
    audio_size: int = 32,
    decoder_channels: int = 64,
    coarse_blocks: int = 4,
    fine_blocks: int = 2,
) -> AutoencoderConfig:
    """The bundled autoencoder's architecture, for KL latents of some shape.

    Both encoders have a linear shortcut, and the video encoder reads every frame. Its trunk is
    small and, without attention in time, sees the first frames alone where its moments are read:
    the others come through the shortcut.

    Args:
        frames: Of a window.
        kl_channels: Of a KL latent.
        video_size: Rows, and columns, of a frame's KL latent; a multiple of 2.
        audio_size: Rows, and columns, of a mel image's KL latent; a multiple of 4.
        decoder_channels: See `SignalDecoderConfig`.
        coarse_blocks: See `SignalDecoderConfig`.
        fine_blocks: See `SignalDecoderConfig`.

    Raises:
        ValueError: There is no such architecture.
    """
    return AutoencoderConfig(
        video_encoder=VideoEncoderConfig(
            in_channels=kl_channels,
            in_size=video_size,
            frames=frames,
            key_frames=tuple(range(frames)),
            channels=4,
            multipliers=(1, 2),
            num_res_blocks=1,
            attention_sizes=(),
            norm_groups=4,
            shortcut_kernel=2 * VIDEO_STRIDE,
        ),
        audio_encoder=AudioEncoderConfig(
            in_channels=kl_channels,
            in_size=audio_size,
            channels=32,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            attention_sizes=(audio_size // 4,),
            head_channels=16,
            norm_groups=8,
            shortcut_kernel=2 * AUDIO_STRIDE,
        ),
        signal_decoder=SignalDecoderConfig(
            out_channels=kl_channels,
            frames=frames,
            channels=decoder_channels,
            coarse_blocks=coarse_blocks,
            fine_blocks=fine_blocks,
        ),
    )


class Autoencoder(nn.Module):
    """A video encoder, an audio encoder and the decoder of both."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.video_encoder = VideoEncoder(config.video_encoder)
        self.audio_encoder = AudioEncoder(config.audio_encoder)
        self.signal_decoder = SignalDecoder(config.signal_decoder)


def fresh_autoencoder(config: AutoencoderConfig, *, seed: int) -> Autoencoder:
    """An untrained autoencoder on the CPU, its weights a function of the seed."""
    autoencoder = Autoencoder(config)
    draw_weights(autoencoder, key=f"{seed}/autoencoder", start="zero")
    for encoder in (autoencoder.video_encoder, autoencoder.audio_encoder):
        last = encoder.logvar_head.layers[-1]
        assert isinstance(last, nn.Conv3d)
        assert last.bias is not None
        nn.init.constant_(last.bias, _FIRST_LOGVAR)
    return autoencoder


def save_autoencoder(folder: Path, autoencoder: Autoencoder) -> None:
    """Writes the folder: encoders in float32, the decoder in float16.

    What an encoder gives is kept in caches, and must be that of the encoder that was trained; the
    decoder's rounding is far below its error.

    Args:
        folder: Created if it does not exist; its two files are replaced.
        autoencoder: Any.

    Raises:
        ModelError: A weight is not finite, or the folder cannot be written.
    """
    decoder = {
        f"{_DECODER}.{name}": tensor.detach() if name.endswith("whitening") else tensor.half()
        for name, tensor in autoencoder.signal_decoder.state_dict().items()
    }
    bad = [name for name, tensor in decoder.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} weights of the decoder are not finite in float16, first "
            f"{bad[0]}; nothing was written. Save an earlier state of the training"
        )
    save_modal_encoders(
        folder,
        autoencoder.video_encoder,
        autoencoder.audio_encoder,
        decoder,
        extra_tables={_DECODER: asdict(autoencoder.config.signal_decoder)},
    )


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """All three parts of an autoencoder's folder, to go on training, on the CPU.

    Raises:
        ModelError: Nothing is there, it cannot be read, or its parts do not fit.
    """
    encoders, decoder = load_modal_encoders(folder), load_signal_decoder(folder)
    try:
        config = AutoencoderConfig(
            video_encoder=encoders.video.config,
            audio_encoder=encoders.audio.config,
            signal_decoder=decoder.config,
        )
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from error
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder.video_encoder, autoencoder.audio_encoder = encoders.video, encoders.audio
    autoencoder.signal_decoder = decoder
    return autoencoder.requires_grad_(True).eval()


def load_signal_decoder(folder: str | Path, *, device: str | torch.device = "cpu") -> SignalDecoder:
    """The signal decoder of an autoencoder's folder, frozen, in float32.

    Args:
        folder: With config.json and model.safetensors; the encoders are not read.
        device: Where it runs.

    Raises:
        ModelError: Nothing is there, it cannot be read, or weights and config do not fit.
    """
    config_path, weights_path = modal_encoder_files(folder)
    config = _decoder_config(config_path)
    prefix = f"{_DECODER}."
    try:
        with safe_open(weights_path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {n.removeprefix(prefix): file.get_tensor(n).float() for n in names}
        with torch.device("meta"):
            decoder = SignalDecoder(config)
        decoder.load_state_dict(weights, strict=True, assign=True)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        found = " ".join(str(error).split())[:500]
        raise ModelError(f"{weights_path}: no usable signal decoder: {found}") from error
    return decoder.requires_grad_(False).eval().to(device)


def _decoder_config(path: Path) -> SignalDecoderConfig:
    try:
        tables: Any = json.loads(path.read_text(encoding="utf-8"))
        return SignalDecoderConfig(**tables[_DECODER])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path}: no config of a {_DECODER}: {error!r}; name the folder of an autoencoder that "
            "was trained with one"
        ) from error
