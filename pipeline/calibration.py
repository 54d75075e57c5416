"""What was shown of a faster way to compute latents, on file, and the demand that it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latents.cache.layout import CacheLayout
from latents.durable import reason, replace_file
from latents.errors import ConfigError
from latents.fields import LEVELS
from latents.models.kl_vae_identity import Precision
from latents.recipe import open_sealed_json, sealed_json
from pipeline.calibration_bounds import BOUNDS, wants_calibration
from pipeline.job import EncodeJob
from pipeline.precision import precisions


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How latents are computed: what a calibration is of."""

    kl_vae: str
    """Digest of the encoder's weights."""
    precision: Precision
    is_compiled: bool
    device: str
    """Its kind: ``cpu`` or ``cuda``."""

    @property
    def file(self) -> str:
        """Where in a cache its calibration lies."""
        compiled = "-compiled" if self.is_compiled else ""
        return f"calibrations/{self.kl_vae}-{self.precision}{compiled}-{self.device}.json"

    def __str__(self) -> str:
        compiled = ", compiled," if self.is_compiled else ""
        return f"{self.precision}{compiled} on {self.device} with weights {self.kl_vae[:12]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How far a way was from full precision, on probe clips."""

    way: Way
    relative_l2: float
    """Distance of the posterior means over the L2 norm of the full ones."""
    psnr_loss_db: float
    """What pictures decoded from them lose; negative where they gain."""
    num_images: int
    versions: str
    """Of the libraries that computed."""

    @property
    def is_within_bounds(self) -> bool:
        """Whether latents may be made in this way; what is not a number is out of bounds."""
        return self.relative_l2 <= BOUNDS.relative_l2 and self.psnr_loss_db <= BOUNDS.psnr_loss_db

    @property
    def figures(self) -> str:
        """What was measured and what is allowed, for people."""
        return (
            f"the means are {self.relative_l2:.2e} apart in relative L2 (at most "
            f"{BOUNDS.relative_l2:g}), and {self.num_images} decoded pictures lose "
            f"{self.psnr_loss_db:.3f} dB of PSNR (at most {BOUNDS.psnr_loss_db:g})"
        )

    def sealed(self) -> bytes:
        """As it is written."""
        return sealed_json(
            {
                "kl_vae": self.way.kl_vae,
                "precision": self.way.precision,
                "compiled": self.way.is_compiled,
                "device": self.way.device,
                "relative_l2": repr(self.relative_l2),
                "psnr_loss_db": repr(self.psnr_loss_db),
                "images": self.num_images,
                "versions": self.versions,
            }
        )

    @classmethod
    def from_sealed(cls, content: bytes) -> Calibration:
        """Inverse of `sealed`.

        Raises:
            ValueError: It is no calibration, or differs from what was sealed.
        """
        found: dict[str, Any] = open_sealed_json(content)
        try:
            return cls(
                way=Way(
                    kl_vae=found["kl_vae"],
                    precision=found["precision"],
                    is_compiled=found["compiled"],
                    device=found["device"],
                ),
                relative_l2=float(found["relative_l2"]),
                psnr_loss_db=float(found["psnr_loss_db"]),
                num_images=found["images"],
                versions=found["versions"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no calibration: {error}") from error


def write_calibration(calibration: Calibration, *, to: Path | CacheLayout) -> str:
    """Writes a calibration to a file or into a cache, over the former one; returns its name."""
    if isinstance(to, Path):
        replace_file(to, calibration.sealed())
        return str(to)
    to.storage.replace(calibration.way.file, calibration.sealed())
    return f"{to.url}/{calibration.way.file}"


def require_calibration(job: EncodeJob, layout: CacheLayout) -> None:
    """Refuses KL latents in a way that was not shown to be close to full precision.

    Raises:
        ConfigError: There is no calibration of this way, or it is out of bounds.
    """
    if job.computed.isdisjoint(LEVELS["kl"]) or not wants_calibration(job.settings):
        return
    settings = job.settings.kl_vae
    way = Way(
        kl_vae=job.kl_vae,
        precision=precisions(job.settings).kl,
        is_compiled=settings.compile,
        device=job.device.partition(":")[0],
    )
    command = (
        f"mmldm calibrate PROBES --cache {layout.url} --kl-vae {settings.source} "
        f"--precision {way.precision}{' --compile' if way.is_compiled else ''}"
    )
    where = settings.calibration or f"{layout.url}/{way.file}"
    content = _read(settings.calibration, layout, way)
    if content is None:
        raise ConfigError(
            f"no latents are made in {way} before a calibration has shown on probe clips that they "
            f"are as good; {where} does not exist. Make it with `{command}` on the kind of device "
            "that is to encode, or leave kl_vae.precision and kl_vae.compile as they are by default"
        )
    try:
        found = Calibration.from_sealed(content)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; make it anew with `{command}`") from error
    if found.way != way:
        raise ConfigError(
            f"{where} is a calibration of {found.way}, and {way} is wanted; make one with "
            f"`{command}`"
        )
    if not found.is_within_bounds:
        raise ConfigError(
            f"{where}: {way} is not as good as full precision: {found.figures}. Leave "
            "kl_vae.precision and kl_vae.compile as they are by default"
        )


def _read(named: str, layout: CacheLayout, way: Way) -> bytes | None:
    """The file that is named, else the cache's own; None where there is none."""
    if not named:
        exists = layout.storage.exists(way.file)
        return layout.storage.read(way.file) if exists else None
    try:
        return Path(named).expanduser().read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{named}: the calibration cannot be read: {reason(error)}") from error
