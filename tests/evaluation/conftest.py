from __future__ import annotations

from pathlib import Path

import pytest

from latents.clip import ClipSpec
from pipeline.settings import IngestSettings, KLVAESettings, RunSettings


@pytest.fixture(scope="session")
def small_settings(small_kl_vae: Path) -> IngestSettings:
    """Frames of 64 x 64 pixels, the small KL-VAE, one worker."""
    return IngestSettings(
        clip=ClipSpec(size=64),
        kl_vae=KLVAESettings(source=str(small_kl_vae)),
        run=RunSettings(workers=1, device="cpu"),
    )
