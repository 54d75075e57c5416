"""Weights that travel arrive as they were, are written once to a node, and are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latents.errors import ModelError
from latents.models.kl_vae_files import WEIGHTS_FILE
from pipeline import ray_weights
from pipeline.job import EncodeJob, LatentScale
from pipeline.ray_weights import arrived_model, job_with_weights, send_weights
from pipeline.settings import IngestSettings, KLVAESettings
from tests.pipeline.small_jobs import make_autoencoder


class Store:
    """Stands in for Ray's object store."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.num_fetched = 0

    def put(self, content: Any) -> int:
        self.objects.append(content)
        return len(self.objects) - 1

    def get(self, reference: int) -> Any:
        self.num_fetched += 1
        return self.objects[reference]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    store = Store()
    monkeypatch.setattr(ray_weights, "ray", store)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return store


def job(kl_vae: str, *, autoencoder: str = "") -> EncodeJob:
    settings = IngestSettings(kl_vae=KLVAESettings(source=kl_vae))
    return EncodeJob(
        settings=replace(settings, autoencoder=replace(settings.autoencoder, source=autoencoder)),
        computed=frozenset({"kl.video", *(["perceptual.video"] if autoencoder else [])}),
        device="cpu",
        cache_url="nowhere",
        kl_vae="0" * 64,
        latent_scale=LatentScale(factor=1.0, shift=0.0),
        modal_encoders=None,
    )


def test_a_model_in_a_folder_arrives_byte_for_byte(small_kl_vae: Path, store: Store) -> None:
    sent_job = job(str(small_kl_vae))

    found = job_with_weights(sent_job, send_weights(sent_job))

    folder = Path(found.settings.kl_vae.source)
    assert folder != small_kl_vae
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS_FILE]
    for path in folder.iterdir():
        assert path.read_bytes() == (small_kl_vae / path.name).read_bytes()
    assert replace(found, settings=sent_job.settings) == sent_job


def test_modal_encoders_travel_too(small_kl_vae: Path, tmp_path: Path, store: Store) -> None:
    autoencoder = make_autoencoder(tmp_path / "autoencoder")
    sent_job = job(str(small_kl_vae), autoencoder=str(autoencoder))

    found = job_with_weights(sent_job, send_weights(sent_job))

    arrived = Path(found.settings.autoencoder.source)
    assert arrived != autoencoder
    names = ("config.json", "model.safetensors")
    assert all((arrived / name).read_bytes() == (autoencoder / name).read_bytes() for name in names)


def test_a_node_fetches_a_model_once(small_kl_vae: Path, store: Store) -> None:
    sent_job = job(str(small_kl_vae))
    weights = send_weights(sent_job)

    first, second = (job_with_weights(sent_job, weights) for _ in range(2))

    assert first == second
    assert store.num_fetched == 2  # its two files


def test_a_checkpoint_travels_as_the_one_file_it_is(tmp_path: Path, store: Store) -> None:
    checkpoint = tmp_path / "kl-f8.ckpt"
    checkpoint.write_bytes(b"weights")
    sent_job = job(str(checkpoint))

    found = job_with_weights(sent_job, send_weights(sent_job))

    arrived = Path(found.settings.kl_vae.source)
    assert (arrived.name, arrived.read_bytes()) == ("kl-f8.ckpt", b"weights")
    assert arrived != checkpoint


@pytest.mark.parametrize("source", ["tiny", "identity"])
def test_what_is_part_of_the_package_does_not_travel(source: str, store: Store) -> None:
    assert send_weights(job(source)) == ()
    assert job_with_weights(job(source), ()) == job(source)


def test_what_arrives_damaged_is_refused(small_kl_vae: Path, tmp_path: Path, store: Store) -> None:
    (weights,) = send_weights(job(str(small_kl_vae)))
    store.objects[1] = np.roll(store.objects[1], 1)

    with pytest.raises(
        ModelError, match=rf"{WEIGHTS_FILE}: what arrived has SHA-256 \w{{12}}, and"
    ):
        arrived_model(weights, tmp_path / "node")


def test_a_file_that_was_changed_on_its_node_is_fetched_again(
    small_kl_vae: Path, tmp_path: Path, store: Store
) -> None:
    (weights,) = send_weights(job(str(small_kl_vae)))
    folder = arrived_model(weights, tmp_path / "node")
    (folder / WEIGHTS_FILE).write_bytes(b"others")

    arrived_model(weights, tmp_path / "node")

    assert (folder / WEIGHTS_FILE).read_bytes() == (small_kl_vae / WEIGHTS_FILE).read_bytes()
