"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from latents.torchaudio_stub import install_torchaudio_stub

if TYPE_CHECKING:
    from tests.latents.s3_server import S3Server

install_torchaudio_stub()

# The same examples on every run, and no time limit on one: machines that run tests are busy.
settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")


@pytest.fixture(scope="session", autouse=True)
def _home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered in the home folder is neither used nor changed by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


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


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    # Not at the top: few tests need it, and it takes half a second to import.
    from tests.latents.s3_server import running_s3_server

    with running_s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server that the environment names, without faults, and with no request counted yet."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    _s3_server.forget()
    yield _s3_server
    _s3_server.forget()


@pytest.fixture
def s3_url(s3: S3Server, tmp_path: Path) -> str:
    """A prefix of the test's own, in the server's bucket."""
    return f"s3://{s3.bucket}/caches/{tmp_path.name}"
