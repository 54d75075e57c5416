"""Settings of runs on small caches, which take a second."""

from __future__ import annotations

from typing import Any

from latents.config import build_dataclass
from training.dit.settings import DiTRunSettings

MODEL = {
    "depth": 2,
    "width": 32,
    "num_heads": 2,
    "context_tokens": 3,
    "context_width": 8,
    "latent_channels": 2,
    "video_size": 4,
    "audio_size": 2,
}


def small_settings(**tables: dict[str, Any]) -> DiTRunSettings:
    """Six steps of four windows; tables override."""
    values: dict[str, dict[str, Any]] = {
        "model": MODEL,
        "optimisation": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9},
        "data": {"validation_share": 0.3},
        "validation": {"every_steps": 3, "num_windows": 8, "draws": 2},
    }
    for name, table in tables.items():
        values[name] = {**values.get(name, {}), **table}
    return build_dataclass(DiTRunSettings, values, path="")
