"""Settings of an ingest: TOML tables as frozen dataclasses.

The tables `clip`, `window`, `mel`, `kl_vae`, `autoencoder` and `decode` change latents and go
into recipes. The tables `sound` and `run` do not: they say what is accepted and how the work is
done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

from latents.clip import ClipSpec, WindowSpec
from latents.store.kinds import StoreName
from pipeline.decode import SoundPolicy

Precision = Literal["fp32", "tf32", "bf16"]
Backend = Literal["decord", "pyav"]
MelName = Literal["hifigan22k", "audioldm16k", "paper44k"]
MEL_NAMES: tuple[MelName, ...] = get_args(MelName)


@dataclass(frozen=True, kw_only=True, slots=True)
class MelSettings:
    """Which mel image stands for sound."""

    name: MelName = "hifigan22k"


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAESettings:
    """Which KL-VAE encodes pictures and mel images."""

    source: str = "tiny"
    """``tiny`` (bundled), a folder, an original .ckpt, or a hub id."""
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderSettings:
    """Which modal encoders make the perceptual level."""

    source: str = ""
    """A folder with ``config.json`` and safetensors; needed for that level alone."""
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """Which library decodes pictures first; PyAV takes what it cannot."""

    backend: Backend = "decord"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How the work is done. Nothing here changes a byte of any latent."""

    workers: int = 0
    """Clips in work at a time; 0 for one per CPU core."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: a GPU where there is one."""
    time_limit_seconds: int = 120
    """A decoder that gives nothing for so long is killed and its source quarantined."""
    shard_bytes: int = 256 * 2**20
    """A shard is sealed and committed once it holds this much."""
    store: StoreName = "tar"
    """Format of new shards. A cache may hold both."""
    commit_seconds: int = 30
    """Work is committed at least this often."""
    in_flight_bytes: int = 1024 * 2**20
    """Decoded clips that may wait in memory for an encoder (Ray)."""

    def __post_init__(self) -> None:
        for name in ("time_limit_seconds", "shard_bytes", "commit_seconds", "in_flight_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be >= 1")
        if self.workers < 0:
            raise ValueError(f"run.workers is {self.workers}; it must be >= 0 (0: one per core)")

    @property
    def num_workers(self) -> int:
        """Workers, with 0 resolved to the cores this process may use."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestSettings:
    """All tables."""

    clip: ClipSpec = field(default_factory=ClipSpec)
    window: WindowSpec = field(default_factory=WindowSpec)
    mel: MelSettings = field(default_factory=MelSettings)
    kl_vae: KLVAESettings = field(default_factory=KLVAESettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    sound: SoundPolicy = field(default_factory=SoundPolicy)
    run: RunSettings = field(default_factory=RunSettings)
