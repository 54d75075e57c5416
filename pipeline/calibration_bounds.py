"""How far latents of a faster way to compute may be from those of full precision."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.precision import precisions
from pipeline.settings import IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBounds:
    """What a calibration must find for a faster way to be allowed."""

    relative_l2: float
    """Most of the distance of posterior means, relative to the L2 norm of the full ones."""
    psnr_loss_db: float
    """Most that pictures decoded from them may lose."""

    @property
    def canonical(self) -> dict[str, str]:
        """Ready for hashing, as part of a recipe."""
        return {"relative_l2": repr(self.relative_l2), "psnr_loss_db": repr(self.psnr_loss_db)}


BOUNDS = CalibrationBounds(relative_l2=1e-2, psnr_loss_db=0.1)


def wants_calibration(settings: IngestSettings) -> bool:
    """Whether latents are made in a way that is to be calibrated first."""
    return settings.kl_vae.compile or precisions(settings).kl == "bf16"
