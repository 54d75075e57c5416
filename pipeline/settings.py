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
PrecisionChoice = Literal["auto", "fp32", "tf32", "bf16"]
Backend = Literal["decord", "pyav"]
MelName = Literal["hifigan22k", "audioldm16k", "paper44k"]
MEL_NAMES: tuple[MelName, ...] = get_args(MelName)

LEAST_MEMORY_LIMIT_BYTES = 256 * 2**20
"""Under it every source would be over its limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MelSettings:
    """Which mel image stands for sound."""

    name: MelName = "hifigan22k"


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAESettings:
    """Which KL-VAE encodes pictures and mel images."""

    source: str = "tiny"
    """``tiny`` (bundled), a folder, an original .ckpt, a hub id, or ``identity`` (averages pixels,
    for measuring ingestion)."""
    precision: PrecisionChoice = "auto"
    """``auto``: ``tf32`` on a GPU and ``fp32`` on a CPU. ``bf16`` wants a calibration."""
    compile: bool = False
    """Encode by what torch.compile makes of the model; wants a calibration."""
    calibration: str = ""
    """A file that `mmldm calibrate --out` wrote; empty for the cache's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderSettings:
    """Which modal encoders make the perceptual level."""

    source: str = ""
    """A folder with ``config.json`` and safetensors; needed for that level alone."""
    precision: PrecisionChoice = "auto"
    """``auto``: as the KL-VAE's, but never ``bf16``."""


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
    """A decoder that gives nothing for so long is killed."""
    memory_limit_bytes: int = 2 * 2**30
    """A decoder whose process holds more is killed; 0 for no limit."""
    decode_attempts: int = 2
    """A segment at which so many decoders died, hung or failed is quarantined."""
    shard_bytes: int = 256 * 2**20
    """A shard is sealed and committed once it holds this much."""
    store: StoreName = "tar"
    """Format of new shards. A cache may hold both."""
    commit_seconds: int = 30
    """Work is committed at least this often."""
    drain_seconds: int = 60
    """A run that was asked to end may go on for so long with what it has in hand."""
    in_flight_bytes: int = 1024 * 2**20
    """Decoded clips that may wait in memory for an encoder (Ray)."""
    batch_images: int = 16
    """Pictures, or windows of latents, that a GPU encodes at a time. A CPU always encodes one, so
    that latents do not depend on it there; a GPU's may, within the tolerance on record."""
    worker_attempts: int = 5
    """A segment at which so many workers died one after the other is quarantined (Ray)."""
    encoder_gpus: float = 1.0
    """GPUs of each encoder on CUDA: a share of one, or some whole ones (Ray)."""

    def __post_init__(self) -> None:
        for name in ("time_limit_seconds", "shard_bytes", "commit_seconds", "in_flight_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be >= 1")
        if self.batch_images < 1:
            raise ValueError(f"run.batch_images is {self.batch_images}; it must be >= 1")
        if self.drain_seconds < 0:
            raise ValueError(f"run.drain_seconds is {self.drain_seconds}; it must be >= 0")
        if self.decode_attempts < 1:
            raise ValueError(f"run.decode_attempts is {self.decode_attempts}; it must be >= 1")
        if self.worker_attempts < 1:
            raise ValueError(f"run.worker_attempts is {self.worker_attempts}; it must be >= 1")
        if not (0 <= self.encoder_gpus <= 1 or self.encoder_gpus in range(2, 1025)):
            raise ValueError(
                f"run.encoder_gpus is {self.encoder_gpus}; it must be 0 (none), a share of a GPU "
                "such as 0.25, or a whole number of them"
            )
        if self.memory_limit_bytes and self.memory_limit_bytes < LEAST_MEMORY_LIMIT_BYTES:
            raise ValueError(
                f"run.memory_limit_bytes is {self.memory_limit_bytes}; it must be 0 (no limit) or "
                f">= {LEAST_MEMORY_LIMIT_BYTES}, since a decoder holds much of that when it starts"
            )
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
