"""The KL-VAE: pictures to posterior moments and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from latents.models.image_batches import ImageBatches
from latents.models.kl_vae_files import (
    AutoencoderKL,
    load_autoencoder,
    settings_of,
)
from latents.models.kl_vae_identity import EncoderIdentity as EncoderIdentity
from latents.models.kl_vae_identity import Precision as Precision
from latents.weights import encode_path, tensors_digest

GPU_BATCH = 16
"""Pictures of a batch on a GPU, unless another number is asked for."""
_ENCODE_SETTINGS = (
    "act_fn",
    "block_out_channels",
    "down_block_types",
    "in_channels",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "use_quant_conv",
)


class KLVAE:
    """A frozen KL-VAE with raw latents: moments and latents are never scaled here.

    Every batch has one fixed shape and holds pictures of one call only, so latents never depend on
    what else is encoded, before or beside. With a batch of 1 and one thread, as on the CPU, equal
    pictures give equal bytes; in larger batches the place in the batch may change the last bits.

    Args:
        autoencoder: Moved to the device and frozen.
        precision: ``bf16`` computes in bfloat16. ``fp32`` and ``tf32`` differ in nothing here:
            whoever owns the process sets torch's TF32 flags.
        device: Where it runs.
        batch_size: Pictures of a batch; the last one is filled up. By default 1 on the CPU.
        is_compiled: Encode by what torch.compile makes of the model; decoding stays as it is.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        is_compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else GPU_BATCH)
        self.identity = _identity(autoencoder)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        # Not diffusers' own `to`, which warns about half precision.
        move: Callable[..., nn.Module] = nn.Module.to
        move(autoencoder, self.device, self._dtype, memory_format=torch.channels_last)
        self._batches = ImageBatches(batch_size=self.batch_size, device=self.device)
        self._moments = torch.compile(self._encode) if is_compiled else self._encode

    @property
    def latent_channels(self) -> int:
        """Channels of a latent; moments have twice as many."""
        return cast(int, self.autoencoder.config["latent_channels"])

    @property
    def downsample(self) -> int:
        """Pixels along the side of one latent position."""
        return cast(int, 2 ** (len(self.autoencoder.config["block_out_channels"]) - 1))

    @property
    def scaling_factor(self) -> float:
        """What raw latents are multiplied by, for about unit variance."""
        return self.identity.scaling_factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Posterior moments of pictures.

        Args:
            images: RGB, uint8 (batch, 3, height, width); the sides are multiples of `downsample`.

        Returns:
            float32 (batch, 2 * latent_channels, height / downsample, width / downsample) on the
            pictures' device: mean, then log-variance clamped to [-30, 20].
        """
        self._check_images(images)
        return self._batches.map(images, self._moments)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, uint8 (batch, 3, height, width), of raw latents (batch, channel, row, column).

        Divide scaled latents by `scaling_factor` first.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents must be (batch, {self.latent_channels}, row, column), got "
                f"{tuple(latents.shape)}"
            )
        return self._batches.map(latents, self._decode)

    def _encode(self, batch: Tensor) -> Tensor:
        pixels = (batch.to(torch.float32) / 127.5 - 1).to(self._dtype)
        posterior = self.autoencoder.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1).float()

    def _decode(self, batch: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(batch.to(self._dtype)).sample
        return ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _check_images(self, images: Tensor) -> None:
        pictures = images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
        if images.dtype != torch.uint8 or not pictures:
            raise ValueError(
                f"images must be uint8 (batch, 3, height, width), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if images.shape[2] % self.downsample or images.shape[3] % self.downsample:
            raise ValueError(
                f"images are {images.shape[2]}x{images.shape[3]}; both sides must be multiples of "
                f"{self.downsample}"
            )


def load_kl_vae(
    source: str,
    *,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    is_compiled: bool = False,
) -> KLVAE:
    """Load a KL-VAE.

    Args:
        source: ``tiny`` for the bundled model; a folder in diffusers' layout, or one that holds it
            as ``vae/``; a checkpoint file of latent diffusion (kl-f8 by itself or within Stable
            Diffusion 1.x); else a model on the Hugging Face hub, ``organisation/name``.
        precision: See `KLVAE`.
        device: See `KLVAE`.
        batch_size: See `KLVAE`.
        is_compiled: See `KLVAE`.

    Raises:
        ModelError: Nothing is there, it cannot be read, or it is no KL-VAE.
    """
    autoencoder = load_autoencoder(source)
    return KLVAE(
        autoencoder,
        precision=precision,
        device=device,
        batch_size=batch_size,
        is_compiled=is_compiled,
    )


def _identity(autoencoder: AutoencoderKL) -> EncoderIdentity:
    settings = settings_of(autoencoder)
    weights = {name: t.float() for name, t in encode_path(autoencoder.state_dict()).items()}
    return EncoderIdentity(
        config={name: settings[name] for name in _ENCODE_SETTINGS},
        scaling_factor=float(settings["scaling_factor"]),
        shift_factor=float(settings["shift_factor"] or 0.0),
        weights_digest=tensors_digest(weights),
    )
