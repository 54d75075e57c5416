from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latents.clip import ClipSpec
from latents.torchaudio_stub import install_torchaudio_stub
from pipeline.settings import IngestSettings, KLVAESettings, RunSettings

install_torchaudio_stub()


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


@pytest.fixture(scope="session")
def small_settings(small_kl_vae: Path) -> IngestSettings:
    """Frames of 64 x 64 pixels, the small KL-VAE, one worker."""
    return IngestSettings(
        clip=ClipSpec(size=64),
        kl_vae=KLVAESettings(source=str(small_kl_vae)),
        run=RunSettings(workers=1, device="cpu"),
    )


def make_kl_vae(folder: Path, *, seed: int) -> Path:
    from diffusers import AutoencoderKL

    from latents.models.kl_vae import KLVAE, save_kl_vae

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
    save_kl_vae(KLVAE(autoencoder), folder)
    return folder
