"""Latents in bf16, or by a compiled model, are made only where a calibration allows it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.config import load_config
from latents.errors import ConfigError
from latents.models.identity_encoder import IdentityEncoder
from pipeline.calibration import Calibration, Way, require_calibration, write_calibration
from pipeline.job import EncodeJob
from pipeline.planned_job import encode_job
from pipeline.recipes import Encoders
from pipeline.settings import IngestSettings

ENCODERS = Encoders(kl_vae=IdentityEncoder.identity, modal=None)
WEIGHTS = IdentityEncoder.identity.weights_digest
BF16 = Way(kl_vae=WEIGHTS, precision="bf16", is_compiled=False, device="cpu")
GOOD = Calibration(way=BF16, relative_l2=0.01, psnr_loss_db=0.1, num_images=20, versions="torch 2")


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "c")


def job(
    *overrides: str, device: str = "cpu", computed: tuple[str, ...] = ("kl.video",)
) -> EncodeJob:
    settings = load_config(IngestSettings, kind="ingest", overrides=overrides)
    return encode_job(settings, ENCODERS, computed=frozenset(computed), device=device, cache_url="")


def test_a_calibration_is_read_as_it_was_written() -> None:
    assert Calibration.from_sealed(GOOD.sealed()) == GOOD


@pytest.mark.parametrize(
    ("relative_l2", "psnr_loss_db", "is_within"),
    [
        (0.01, 0.1, True),
        (0.0, -1.0, True),
        (0.0101, 0.0, False),
        (0.0, 0.101, False),
        (math.nan, 0.0, False),
        (0.0, math.inf, False),
    ],
)
def test_both_bounds_must_hold(relative_l2: float, psnr_loss_db: float, is_within: bool) -> None:
    found = replace(GOOD, relative_l2=relative_l2, psnr_loss_db=psnr_loss_db)
    assert Calibration.from_sealed(found.sealed()).is_within_bounds == is_within


@pytest.mark.parametrize("overrides", [(), ("kl_vae.precision=tf32",), ("kl_vae.precision=fp32",)])
def test_full_precision_and_tf32_need_none(overrides: tuple[str, ...], layout: CacheLayout) -> None:
    require_calibration(job(*overrides), layout)


def test_where_no_kl_latents_are_made_none_is_needed(layout: CacheLayout) -> None:
    require_calibration(job("kl_vae.precision=bf16", computed=("perceptual.video",)), layout)


@pytest.mark.parametrize(
    ("override", "options"),
    [("kl_vae.precision=bf16", "--precision bf16`"), ("kl_vae.compile=true", "--compile`")],
)
def test_without_one_the_command_that_makes_it_is_named(
    override: str, options: str, layout: CacheLayout
) -> None:
    with pytest.raises(
        ConfigError, match=f"mmldm calibrate PROBES --cache .* --kl-vae .*{options}"
    ):
        require_calibration(job(override), layout)


def test_the_caches_own_is_found(layout: CacheLayout) -> None:
    write_calibration(GOOD, to=layout)
    require_calibration(job("kl_vae.precision=bf16"), layout)


def test_one_out_of_bounds_is_refused_with_what_was_measured(layout: CacheLayout) -> None:
    write_calibration(replace(GOOD, relative_l2=0.02), to=layout)
    with pytest.raises(ConfigError, match=r"2\.00e-02 apart .*0\.01.* 20 decoded pictures"):
        require_calibration(job("kl_vae.precision=bf16"), layout)


@pytest.mark.parametrize(
    ("overrides", "device"),
    [
        (("kl_vae.precision=bf16",), "cuda:1"),
        (("kl_vae.precision=bf16", "kl_vae.compile=true"), "cpu"),
    ],
)
def test_one_of_another_way_is_not_taken_for_it(
    overrides: tuple[str, ...], device: str, layout: CacheLayout
) -> None:
    write_calibration(GOOD, to=layout)
    with pytest.raises(ConfigError, match="does not exist"):
        require_calibration(job(*overrides, device=device), layout)


def test_a_file_elsewhere_is_named_in_the_settings(layout: CacheLayout, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    bf16 = job("kl_vae.precision=bf16", f"kl_vae.calibration={file}")
    with pytest.raises(ConfigError, match=r"calibration\.json does not exist"):
        require_calibration(bf16, layout)
    write_calibration(GOOD, to=file)
    require_calibration(bf16, layout)


def test_a_file_of_other_weights_is_refused(layout: CacheLayout, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    write_calibration(replace(GOOD, way=replace(BF16, kl_vae="0" * 64)), to=file)
    with pytest.raises(ConfigError, match="weights 000000000000, and bf16 on cpu with weights"):
        require_calibration(job("kl_vae.precision=bf16", f"kl_vae.calibration={file}"), layout)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", GOOD.sealed().replace(b'"0.01"', b'"0.00"')],
    ids=["empty", "bare", "changed"],
)
def test_a_damaged_one_is_refused(content: bytes, layout: CacheLayout) -> None:
    layout.storage.replace(BF16.file, content)
    with pytest.raises(ConfigError, match="make it anew with `mmldm calibrate"):
        require_calibration(job("kl_vae.precision=bf16"), layout)
