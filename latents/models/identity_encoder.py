"""An encoder without weights, which averages pixels: for whatever measures or tests ingestion.

It starts at once and costs next to nothing, so that what remains is the cost of all the rest. Its
moments have the shape of a KL-VAE's, and are no latents to train on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latents.models.kl_vae_identity import EncoderIdentity
from latents.recipe import Canonical, canonical_json, sha256_hex

IDENTITY = "identity"
"""The source that names this encoder."""
DOWNSAMPLE = 8
"""Pixels along the side of one position of a latent."""
MIN_LOG_VARIANCE = -30.0
"""The least that a KL-VAE gives."""

_PIXELS = DOWNSAMPLE * DOWNSAMPLE
_LUMA_WEIGHTS = (299, 587, 114)
"""Of red, green and blue, in thousandths (ITU-R BT.601)."""
_IMAGES_AT_A_TIME = 4
"""Few enough for a processor's cache."""
_CONFIG: dict[str, Canonical] = {
    "name": "average of 8 x 8 pixels",
    "latent_channels": 4,
    "channels": ["red", "green", "blue", "luma"],
}


class IdentityEncoder:
    """The average of each 8 x 8 pixels: red, green, blue, and their luma (ITU-R BT.601).

    Sums are of integers, so that neither the device, nor the number of threads, nor how many
    pictures there are at a time changes a bit. It decodes nothing.
    """

    identity = EncoderIdentity(
        config=_CONFIG,
        scaling_factor=1.0,
        shift_factor=0.0,
        weights_digest=sha256_hex(canonical_json(_CONFIG)),
    )

    def encode(self, images: Tensor) -> Tensor:
        """Moments of pictures.

        Args:
            images: RGB, uint8 (batch, 3, height, width); the sides are multiples of 8.

        Returns:
            float32 (batch, 8, height / 8, width / 8): four means in [-1, 1], then four
            log-variances of -30.
        """
        _check_images(images)
        means = torch.cat([_means(part) for part in torch.split(images, _IMAGES_AT_A_TIME)])
        return torch.cat([means, torch.full_like(means, MIN_LOG_VARIANCE)], dim=1)


def _means(images: Tensor) -> Tensor:
    num_images, _, height, width = images.shape
    rows = images.reshape(num_images, 3, height // DOWNSAMPLE, DOWNSAMPLE, width)
    # Row by row: several times as fast as summing over both sides of a square at once.
    columns = rows[:, :, :, 0].to(torch.int16)
    for index in range(1, DOWNSAMPLE):
        columns += rows[:, :, :, index]
    squares = columns.reshape(*columns.shape[:3], width // DOWNSAMPLE, DOWNSAMPLE)
    sums = squares.sum(dim=4, dtype=torch.int32)
    luma = sum(weight * sums[:, i] for i, weight in enumerate(_LUMA_WEIGHTS))
    assert isinstance(luma, Tensor)
    levels = torch.cat([sums.float() / _PIXELS, luma[:, None].float() / (1000 * _PIXELS)], dim=1)
    return levels / 127.5 - 1


def _check_images(images: Tensor) -> None:
    pictures = images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
    if images.dtype != torch.uint8 or not pictures:
        raise ValueError(
            f"images must be uint8 (batch, 3, height, width), got {images.dtype} "
            f"{tuple(images.shape)}"
        )
    if images.shape[2] % DOWNSAMPLE or images.shape[3] % DOWNSAMPLE:
        raise ValueError(
            f"images are {images.shape[2]}x{images.shape[3]}; both sides must be multiples of "
            f"{DOWNSAMPLE}"
        )
