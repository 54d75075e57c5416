"""Weights that travel with a job: once to each node, by Ray's object store, checked on arrival."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray

from latents.durable import replace_file
from latents.errors import ModelError
from latents.fields import LEVELS

if TYPE_CHECKING:
    from pipeline.job import EncodeJob

BUNDLED = ("", "tiny", "identity")
"""Sources of models that every node has, as part of this package."""
Table = Literal["kl_vae", "autoencoder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SentFile:
    """One file of a model."""

    name: str
    digest: str
    """SHA-256, hex."""
    content: Any
    """Ray's reference to its bytes, as a uint8 array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SentWeights:
    """A model, and the settings' table whose ``source`` names it."""

    table: Table
    files: tuple[SentFile, ...]
    is_folder: bool
    """Whether the source is a folder; else it is the one file."""


def send_weights(job: EncodeJob) -> tuple[SentWeights, ...]:
    """Puts the models that a job needs where every node can fetch them.

    Raises:
        ModelError: A model's files cannot be read.
    """
    return tuple(
        SentWeights(
            table=table,
            files=tuple(_send(path) for path in paths),
            is_folder=len(paths) > 1,
        )
        for table, paths in _needed_files(job).items()
    )


def job_with_weights(job: EncodeJob, weights: tuple[SentWeights, ...]) -> EncodeJob:
    """The job with its models' sources named as they are found on this node.

    Raises:
        ModelError: What arrived is not what was sent.
    """
    settings = job.settings
    for one in weights:
        source = str(arrived_model(one, _folder_of_this_user()))
        if one.table == "kl_vae":
            settings = replace(settings, kl_vae=replace(settings.kl_vae, source=source))
        else:
            settings = replace(settings, autoencoder=replace(settings.autoencoder, source=source))
    return replace(job, settings=settings)


def arrived_model(weights: SentWeights, root: Path) -> Path:
    """The folder or file of a model on this node, written there unless it is there already."""
    whole = hashlib.sha256("".join(file.digest for file in weights.files).encode()).hexdigest()
    folder = root / whole
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in weights.files:
        path = folder / file.name
        if not path.is_file() or _digest(path.read_bytes()) != file.digest:
            content = ray.get(file.content).tobytes()
            if _digest(content) != file.digest:
                raise ModelError(
                    f"{file.name}: what arrived has SHA-256 {_digest(content)[:12]}, and "
                    f"{file.digest[:12]} was sent; run again, and look at this node's memory"
                )
            replace_file(path, content)
    return folder if weights.is_folder else folder / weights.files[0].name


def _needed_files(job: EncodeJob) -> dict[Table, tuple[Path, ...]]:
    needed: dict[Table, tuple[Path, ...]] = {}
    kl_vae, autoencoder = job.settings.kl_vae.source, job.settings.autoencoder.source
    if kl_vae not in BUNDLED and job.computed & set(LEVELS["kl"]):
        # Not at the top: it brings diffusers, which those who decode do without.
        from latents.models.kl_vae_files import autoencoder_files

        config, tensors = autoencoder_files(kl_vae)
        # A checkpoint has no config of its own.
        needed["kl_vae"] = (tensors,) if Path(kl_vae).is_file() else (config, tensors)
    if autoencoder not in BUNDLED and job.computed & set(LEVELS["perceptual"]):
        from latents.models.modal_encoder_files import modal_encoder_files

        needed["autoencoder"] = modal_encoder_files(autoencoder)
    return needed


def _send(path: Path) -> SentFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read to be sent to the nodes ({error})") from error
    return SentFile(
        name=path.name,
        digest=_digest(content),
        content=ray.put(np.frombuffer(content, np.uint8)),
    )


def _folder_of_this_user() -> Path:
    """A folder that nobody else can write to.

    Raises:
        ModelError: Somebody else made it.
    """
    folder = Path(tempfile.gettempdir()) / f"mmldm-weights-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ModelError(f"{folder} belongs to another user; remove it, or set TMPDIR on the nodes")
    return folder


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
