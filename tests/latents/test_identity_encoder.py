"""The encoder without weights gives pooled pixels, alike whatever else is encoded beside them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from latents.errors import ModelError
from latents.models.identity_encoder import IdentityEncoder
from latents.models.identity_memo import kl_vae_identity
from latents.models.kl_vae import load_kl_vae
from latents.recipe import is_sha256_hex


def noise_pictures(count: int, height: int = 32, width: int = 48) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)


def test_means_are_averages_of_8_by_8_pixels_and_their_luma() -> None:
    pictures = noise_pictures(3)
    moments = IdentityEncoder().encode(pictures)
    pooled = functional.avg_pool2d(pictures.float(), 8) / 127.5 - 1
    luma = pooled[:, 0] * 0.299 + pooled[:, 1] * 0.587 + pooled[:, 2] * 0.114
    assert (moments.shape, moments.dtype) == ((3, 8, 4, 6), torch.float32)
    assert torch.equal(moments[:, :3], pooled)
    torch.testing.assert_close(moments[:, 3], luma, rtol=0, atol=1e-6)  # float32 rounding


def test_log_variance_is_the_least_there_is() -> None:
    moments = IdentityEncoder().encode(noise_pictures(2))
    assert torch.equal(moments[:, 4:], torch.full((2, 4, 4, 6), -30.0))


@pytest.mark.parametrize("level", [0, 255])
def test_means_span_minus_one_to_one(level: int) -> None:
    pictures = torch.full((1, 3, 8, 8), level, dtype=torch.uint8)
    means = IdentityEncoder().encode(pictures)[0, :4].flatten().tolist()
    assert means == [1.0 if level else -1.0] * 4


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_the_size_of_a_batch_changes_no_bit(batch_size: int) -> None:
    encoder, pictures = IdentityEncoder(), noise_pictures(9)
    parts = torch.cat([encoder.encode(part) for part in torch.split(pictures, batch_size)])
    assert torch.equal(parts, encoder.encode(pictures))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 36, dtype=torch.uint8),
    ],
    ids=["float", "no batch", "empty", "not a multiple"],
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        IdentityEncoder().encode(images)


def test_it_is_known_by_what_it_does() -> None:
    identity = kl_vae_identity("identity")
    assert identity == IdentityEncoder.identity
    assert is_sha256_hex(identity.weights_digest)
    assert identity.specification()["architecture"] == {
        "name": "average of 8 x 8 pixels",
        "latent_channels": 4,
        "channels": ["red", "green", "blue", "luma"],
    }


def test_as_a_decoder_it_is_refused() -> None:
    with pytest.raises(ModelError, match=r"identity: it averages pixels.* no decoder"):
        load_kl_vae("identity")


@pytest.mark.slow
def test_it_needs_no_diffusers() -> None:
    code = (
        "import sys, pipeline.stages, pipeline.recorded, pipeline.ingest\n"
        "from latents.models.identity_memo import kl_vae_identity\n"
        "kl_vae_identity('identity')\n"
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
