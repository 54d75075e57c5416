"""What the latents of a KL-VAE depend on, and how precisely one computes; brings no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latents.recipe import Canonical

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderIdentity:
    """What a KL-VAE's latents depend on: two that are equal here give the same latents."""

    config: Mapping[str, Canonical]
    """The architecture of the encode path."""
    scaling_factor: float
    """Latents are multiplied by it before anything reads them."""
    shift_factor: float
    """Subtracted from latents before they are scaled."""
    weights_digest: str
    """SHA-256 of the encode path's weights as float32; the decoder's are not in it."""

    def specification(self) -> dict[str, Canonical]:
        """The part of a recipe that this encoder is."""
        return {
            "architecture": dict(self.config),
            "scaling_factor": repr(self.scaling_factor),
            "shift_factor": repr(self.shift_factor),
            "weights": self.weights_digest,
        }

    @classmethod
    def from_specification(cls, specification: Mapping[str, Any]) -> EncoderIdentity:
        """Inverse of `specification`."""
        return cls(
            config=dict(specification["architecture"]),
            scaling_factor=float(specification["scaling_factor"]),
            shift_factor=float(specification["shift_factor"]),
            weights_digest=specification["weights"],
        )
