"""Loads the encode stage of a job: its models, checked, and torch set as they want it."""

from __future__ import annotations

import threading

import torch

from latents.errors import ConfigError, ModelError
from latents.models.identity_encoder import IDENTITY, IdentityEncoder
from latents.models.kl_vae_identity import Precision
from latents.models.modal_encoder_files import load_modal_encoders
from pipeline.encode_stage import (
    KL_FIELDS,
    PERCEPTUAL_FIELDS,
    EncodeClip,
    ImageEncoder,
    WindowEncoder,
)
from pipeline.job import EncodeJob
from pipeline.precision import precisions


def configure_torch(precision: Precision) -> None:
    """Sets the process-wide switches that latents depend on, the same in every worker."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def load_stage(job: EncodeJob, stop: threading.Event | None = None) -> EncodeClip:
    """The encode stage of a job, with the models it needs in memory.

    Raises:
        ModelError: A model cannot be loaded, or is not the one that the recipes name.
        OutOfMemoryError: The GPU's memory does not hold a batch of pictures.
    """
    configure_torch(_precision(job))
    stage = EncodeClip(
        kl_vae=_load_kl_vae(job) if job.computed & KL_FIELDS else None,
        modal=_load_modal(job) if job.computed & PERCEPTUAL_FIELDS else None,
        latent_scale=job.latent_scale,
        settings=job.settings,
        device=job.device,
        stop=stop,
    )
    if job.device != "cpu":
        stage.probe()
    return stage


def _precision(job: EncodeJob) -> Precision:
    """What torch is to be set to, for the whole process, so that each encoder gets its own.

    Raises:
        ConfigError: One encoder wants TF32 and another full precision.
    """
    of_job = precisions(job.settings)
    wanted: set[Precision] = set()
    if job.computed & KL_FIELDS:
        wanted.add(of_job.kl)
    if job.computed & PERCEPTUAL_FIELDS:
        wanted.add(of_job.modal)
    if {"tf32", "fp32"} <= wanted:
        raise ConfigError(
            "kl_vae.precision and autoencoder.precision are tf32 and fp32, which one process "
            "cannot do at once; make them equal, or make the levels in two runs (--levels)"
        )
    return "tf32" if "tf32" in wanted else "fp32"


def _load_kl_vae(job: EncodeJob) -> ImageEncoder:
    settings = job.settings.kl_vae
    if settings.source == IDENTITY:
        _require_weights(IDENTITY, "--kl-vae", IdentityEncoder.identity.weights_digest, job.kl_vae)
        return IdentityEncoder()
    # Here, not at the top: it brings diffusers, which takes seconds to import.
    from latents.models.kl_vae import load_kl_vae

    encoder = load_kl_vae(
        settings.source,
        precision=precisions(job.settings).kl,
        device=job.device,
        batch_size=_batch_size(job),
        is_compiled=settings.compile,
    )
    _require_weights(settings.source, "--kl-vae", encoder.identity.weights_digest, job.kl_vae)
    return encoder


def _load_modal(job: EncodeJob) -> WindowEncoder:
    settings = job.settings.autoencoder
    assert job.modal_encoders is not None
    if not settings.source:
        raise ConfigError(
            "the perceptual level is made by modal encoders, and none were named; name the folder "
            f"of those with weights {job.modal_encoders[0][:12]} with --autoencoder, or leave the "
            "level out with --levels kl"
        )
    encoders = load_modal_encoders(
        settings.source,
        precision=precisions(job.settings).modal,
        device=job.device,
        batch_size=_batch_size(job),
    )
    identity = encoders.identity
    found = identity.video.weights_digest, identity.audio.weights_digest
    for one, wanted in zip(found, job.modal_encoders, strict=True):
        _require_weights(settings.source, "--autoencoder", one, wanted)
    return encoders


def _batch_size(job: EncodeJob) -> int | None:
    """As asked for on a GPU; None on the CPU, for batches of one and so of equal bytes."""
    return None if job.device == "cpu" else job.settings.run.batch_images


def _require_weights(source: str, option: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{source}: these weights ({found[:12]}) are not those that the latents are to be made "
            f"with ({wanted[:12]}). Name the right ones with {option}; if they changed during the "
            "run, or another machine has others under this name, make them equal and run again"
        )
