"""What ``auto`` comes to: the same recipes everywhere, unless a GPU is named or found."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.config import load_config
from pipeline.cli_settings import add_settings_options, settings_on_record
from pipeline.precision import has_auto, precisions, with_precisions
from pipeline.settings import IngestSettings
from tests.pipeline.small_jobs import SmallCache, SmallJob


def settings(*overrides: str) -> IngestSettings:
    return load_config(IngestSettings, kind="ingest", overrides=overrides)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), ("cuda", "tf32"), ("cuda:1", "tf32"), ("auto", "fp32")],
)
def test_auto_is_tf32_on_a_gpu_and_fp32_elsewhere(device: str, precision: str) -> None:
    for found in (
        precisions(settings(f"run.device={device}")),
        precisions(settings(), device=device),
    ):
        assert (found.kl, found.modal) == (precision, precision)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_precision_that_is_asked_for_stays(precision: str) -> None:
    asked = settings(f"kl_vae.precision={precision}", f"autoencoder.precision={precision}")
    found = precisions(asked, device="cuda")
    assert (found.kl, found.modal) == (precision, precision)


@pytest.mark.parametrize(
    ("kl", "device", "modal"),
    [
        ("fp32", "cuda", "fp32"),
        ("tf32", "cpu", "tf32"),
        ("bf16", "cuda", "tf32"),
        ("bf16", "cpu", "fp32"),
    ],
)
def test_the_modal_encoders_follow_the_kl_vae_but_not_to_bf16(
    kl: str, device: str, modal: str
) -> None:
    assert precisions(settings(f"kl_vae.precision={kl}"), device=device).modal == modal


def test_the_encoder_without_weights_computes_alike_everywhere() -> None:
    assert precisions(settings("kl_vae.source=identity"), device="cuda").kl == "fp32"


def test_settled_settings_no_longer_depend_on_the_device() -> None:
    settled = with_precisions(settings(), device="cuda")
    assert (settled.kl_vae.precision, settled.autoencoder.precision) == ("tf32", "tf32")
    assert has_auto(settings())
    assert not has_auto(settled)
    assert precisions(settled, device="cpu") == precisions(settled, device="cuda")


def on_record(cache: CacheLayout, *options: str) -> IngestSettings:
    parser = argparse.ArgumentParser()
    add_settings_options(parser)
    return settings_on_record(cache, parser.parse_args(["--cache", cache.url, *options]))[0]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` finds one."""
    monkeypatch.setattr("pipeline.cli_settings.device_named", lambda *_, **__: "cuda")


@pytest.mark.usefixtures("gpu")
def test_a_new_cache_on_a_gpu_is_made_in_tf32(tmp_path: Path, small_kl_vae: Path) -> None:
    cache = create_cache(tmp_path / "c")
    assert on_record(cache, "--kl-vae", str(small_kl_vae)).kl_vae.precision == "tf32"
    named = ("--kl-vae", str(small_kl_vae), "--set", "run.device=cpu")
    assert on_record(cache, *named).kl_vae.precision == "fp32"


@pytest.mark.usefixtures("gpu", "decode_in_process")
def test_a_cache_keeps_the_precision_on_record(tmp_path: Path) -> None:
    cache = SmallCache(tmp_path)
    cache.run(SmallJob(kl_vae=Path("identity")), "scenes:0:1:2")
    kept = on_record(cache.layout)
    assert (kept.kl_vae.precision, kept.autoencoder.precision) == ("fp32", "fp32")
    asked = on_record(cache.layout, "--set", "kl_vae.precision=auto")
    assert asked.kl_vae.precision == "tf32"
