"""What a report was written of, as a name that changes when it does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from evaluation.report.samples import find_samples
from evaluation.report.trained import TrainedModels
from latents.cache.inspect import CacheSummary
from latents.durable import reason
from latents.errors import ModelError
from latents.models.kl_vae_files import autoencoder_files
from latents.models.modal_encoder_files import modal_encoder_files
from training.autoencoder_run import METRICS_FILE as AUTOENCODER_METRICS
from training.dit.files import dit_files
from training.dit.run import METRICS_FILE as DIT_METRICS


def report_fingerprint(
    summary: CacheSummary, num_clips: int, *, kl_vae: str, models: TrainedModels | None
) -> str:
    """Names what a report was written of."""
    of_cache = f"{summary.commit} {summary.levels['kl'].content_digest} {num_clips}"
    if models is None:
        return of_cache
    perceptual = summary.levels.get("perceptual")
    latents = perceptual.content_digest if perceptual is not None else "none"
    return f"{of_cache} {latents} {models_digest(models, kl_vae=kl_vae)}"


def models_digest(models: TrainedModels, *, kl_vae: str) -> str:
    """SHA-256 of the files that what is shown of models depends on, beside the cache.

    Of samples themselves only name and size count.

    Raises:
        ModelError: A file cannot be read.
        ConfigError: A folder holds no samples.
    """
    digest = hashlib.sha256(f"{models.validation_share}\n".encode())
    for path in _files(models, kl_vae):
        digest.update(_file_digest(path))
    for sample in find_samples(models.samples):
        size = sample.path.stat().st_size
        digest.update(f"{sample.path.parent.name}/{sample.path.name} {size}\n".encode())
        digest.update(_file_digest(sample.record))
    return digest.hexdigest()


def _files(models: TrainedModels, kl_vae: str) -> Iterator[Path]:
    config, weights = modal_encoder_files(models.autoencoder)
    yield from (config, weights, config.with_name(AUTOENCODER_METRICS))
    yield from autoencoder_files(kl_vae)
    if models.dit is not None:
        config, weights = dit_files(models.dit)
        yield from (config, weights, config.with_name(DIT_METRICS))


def _file_digest(path: Path) -> bytes:
    """32 bytes; those of nothing where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return bytes(32)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({reason(error)})") from error
