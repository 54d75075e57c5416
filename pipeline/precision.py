"""Which precision each encoder computes in, once ``auto`` is settled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from latents.models.identity_encoder import IDENTITY
from pipeline.settings import IngestSettings, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Precisions:
    """Of the KL-VAE and of the modal encoders."""

    kl: Precision
    modal: Precision


def precisions(settings: IngestSettings, *, device: str | None = None) -> Precisions:
    """What the settings ask for, with ``auto`` settled.

    The KL-VAE's ``auto`` is ``tf32`` on a GPU and ``fp32`` elsewhere. The modal encoders' is the
    same as the KL-VAE's, since one process cannot compute in both; beside ``bf16`` it is as the
    KL-VAE's would be.

    Args:
        settings: The settings.
        device: Where latents are made; by default ``run.device``, of which ``auto`` is no GPU: for
            the same settings the same recipes are wanted on every machine.
    """
    of_device: Precision = "tf32" if (device or settings.run.device).startswith("cuda") else "fp32"
    wanted, modal = settings.kl_vae.precision, settings.autoencoder.precision
    if wanted == "auto":
        # It gives the same bytes everywhere, and so has one recipe.
        wanted = "fp32" if settings.kl_vae.source == IDENTITY else of_device
    if modal == "auto":
        modal = of_device if wanted == "bf16" else wanted
    return Precisions(kl=wanted, modal=modal)


def with_precisions(settings: IngestSettings, *, device: str) -> IngestSettings:
    """The settings with both precisions settled for a device, as recipes are to have them."""
    settled = precisions(settings, device=device)
    return replace(
        settings,
        kl_vae=replace(settings.kl_vae, precision=settled.kl),
        autoencoder=replace(settings.autoencoder, precision=settled.modal),
    )


def has_auto(settings: IngestSettings) -> bool:
    """Whether a precision is yet to be settled."""
    return "auto" in (settings.kl_vae.precision, settings.autoencoder.precision)
