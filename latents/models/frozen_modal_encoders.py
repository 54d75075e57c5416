"""Frozen modal encoders, and the identity of what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latents.models.modal_encoders import AudioEncoder, VideoEncoder
from latents.recipe import Canonical
from latents.weights import tensors_digest

if TYPE_CHECKING:  # the KL-VAE brings diffusers, which nothing here needs
    from latents.models.kl_vae import Precision

_GPU_BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalEncoderIdentity:
    """What one encoder's latents depend on, beside the KL latents it reads."""

    config: Mapping[str, Canonical]
    """The architecture, as in the autoencoder's config.json."""
    weights_digest: str
    """SHA-256 of the encode path's weights as float32, by their names within the encoder."""

    def specification(self) -> dict[str, Canonical]:
        """The part of a recipe that this encoder is."""
        return {"architecture": dict(self.config), "weights": self.weights_digest}

    @classmethod
    def from_specification(cls, specification: Mapping[str, Any]) -> ModalEncoderIdentity:
        """Inverse of `specification`."""
        return cls(
            config=dict(specification["architecture"]), weights_digest=specification["weights"]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalIdentity:
    """Both encoders' identities. They are apart: a new video encoder leaves audio latents valid."""

    video: ModalEncoderIdentity
    audio: ModalEncoderIdentity


class ModalEncoders:
    """Frozen video and audio encoders.

    Every batch has one fixed shape and holds windows of one call only, so latents never depend on
    what else is encoded, before or beside. With a batch of 1 and one thread, as on the CPU, equal
    windows give equal bytes; in larger batches the place in the batch may change the last bits.

    Args:
        video: Moved to the device and frozen.
        audio: Moved to the device and frozen.
        precision: ``bf16`` computes in bfloat16, apart from norms. ``fp32`` and ``tf32`` differ in
            nothing here: whoever owns the process sets torch's TF32 flags.
        device: Where they run.
        batch_size: Windows of a batch; the last one is filled up. By default 1 on the CPU.
    """

    def __init__(
        self,
        video: VideoEncoder,
        audio: AudioEncoder,
        *,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else _GPU_BATCH)
        self.identity = ModalIdentity(video=_identity(video), audio=_identity(audio))
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.video = video.requires_grad_(False).eval().to(self.device, self._dtype)
        self.audio = audio.requires_grad_(False).eval().to(self.device, self._dtype)

    def encode_video(self, latents: Tensor) -> Tensor:
        """Posterior moments of windows' pictures.

        Args:
            latents: KL means times the KL-VAE's scaling factor, floating point (batch, frame,
                channel, row, column), every frame of each window.

        Returns:
            float32 (batch, 2 * out_channels, row, column) on the latents' device, (batch, 32, 16,
            16) in MM-LDM: mean, then log-variance clamped to [-30, 20].
        """
        config = self.video.config
        _check(latents, (config.frames, config.in_channels, config.in_size, config.in_size))
        return self._in_fixed_batches(latents, self.video)

    def encode_audio(self, latents: Tensor) -> Tensor:
        """Posterior moments of windows' sound.

        Args:
            latents: KL means of the windows' mel images times the KL-VAE's scaling factor, floating
                point (batch, channel, row, column).

        Returns:
            float32 (batch, 2 * out_channels, row, column) on the latents' device, (batch, 32, 8, 8)
            in MM-LDM: mean, then log-variance clamped to [-30, 20].
        """
        config = self.audio.config
        _check(latents, (config.in_channels, config.in_size, config.in_size))
        return self._in_fixed_batches(latents, self.audio)

    @torch.no_grad()
    def _in_fixed_batches(self, latents: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        outputs = []
        for start in range(0, len(latents), self.batch_size):
            batch = latents[start : start + self.batch_size]
            whole = batch.to(self.device, self._dtype)
            if len(batch) < self.batch_size:
                filling = whole.new_zeros((self.batch_size - len(batch), *whole.shape[1:]))
                whole = torch.cat([whole, filling])
            outputs.append(encode(whole)[: len(batch)].to(latents.device))
        return torch.cat(outputs)


def _identity(encoder: VideoEncoder | AudioEncoder) -> ModalEncoderIdentity:
    weights = {name: tensor.float() for name, tensor in encoder.state_dict().items()}
    return ModalEncoderIdentity(
        config=architecture_of(encoder), weights_digest=tensors_digest(weights)
    )


def architecture_of(encoder: VideoEncoder | AudioEncoder) -> dict[str, Canonical]:
    """An encoder's config as JSON values; without a shortcut, the key of it is left out.

    Encoders without one are the same as before there were shortcuts, and so is their identity.
    """
    values = asdict(encoder.config)
    if not encoder.config.shortcut_kernel:
        del values["shortcut_kernel"]
    return {n: list(value) if isinstance(value, tuple) else value for n, value in values.items()}


def _check(latents: Tensor, shape: tuple[int, ...]) -> None:
    if not latents.is_floating_point() or latents.shape[1:] != shape or len(latents) == 0:
        raise ValueError(
            f"latents must be floating point (batch, {', '.join(map(str, shape))}), got "
            f"{latents.dtype} {tuple(latents.shape)}"
        )
