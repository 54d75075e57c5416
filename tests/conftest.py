"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from latents.torchaudio_stub import install_torchaudio_stub

install_torchaudio_stub()

# The same examples on every run, and no time limit on one: machines that run tests are busy.
settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_kl_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KL-VAE with random weights, a few thousand parameters, in a folder."""
    return make_kl_vae(tmp_path_factory.mktemp("kl_vae") / "small", seed=0)


@pytest.fixture(scope="session")
def other_kl_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return make_kl_vae(tmp_path_factory.mktemp("kl_vae") / "other", seed=1)


def make_kl_vae(folder: Path, *, seed: int) -> Path:
    from diffusers import AutoencoderKL

    from latents.models.kl_vae_files import save_autoencoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            mid_block_add_attention=False,
        )
    save_autoencoder(autoencoder, folder)
    return folder
