"""What a calibration measures, and that an ingest goes by it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latents.cache.refs import read_recipe
from latents.config import load_config
from latents.errors import ConfigError, ModelError
from latents.models.identity_encoder import IdentityEncoder
from mmldm import main
from pipeline.calibrate import Comparison, calibrate
from pipeline.calibration import Calibration, Way, write_calibration
from pipeline.settings import IngestSettings
from pipeline.sources import find_sources
from tests.pipeline.small_jobs import SMALL, SmallCache, SmallJob

BF16 = "kl_vae.precision=bf16"


def pictures(count: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)


def encode(images: Tensor) -> Tensor:
    return IdentityEncoder().encode(images)


def decode(means: Tensor) -> Tensor:
    """Nearest neighbours."""
    levels = ((means[:, :3] + 1) * 127.5).round().clamp(0, 255)
    return levels.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def compared(fast: float) -> Comparison:
    """With an encoder whose moments are larger by a factor."""
    comparison = Comparison(full=encode, fast=lambda images: encode(images) * fast, decode=decode)
    for part in torch.split(pictures(), 1):
        comparison.add(part)
    return comparison


def test_equal_moments_are_no_distance_apart_and_lose_nothing() -> None:
    found = compared(1.0)
    assert (found.relative_l2, found.psnr_loss_db, found.num_images) == (0.0, 0.0, 4)


def test_the_distance_is_relative_to_the_norm_of_the_full_means() -> None:
    # Of means alone: log-variances, which are 30 times as large, are not in it.
    assert compared(1.25).relative_l2 == pytest.approx(0.25, rel=1e-6)


def test_the_loss_is_that_of_the_psnr_of_all_pictures_together() -> None:
    def error(means: Tensor) -> float:
        return float((decode(means).double() - pictures().double()).square().mean())

    full = encode(pictures())[:, :4]
    loss = 10 * math.log10(error(full * 5) / error(full))
    assert loss > 0.1
    assert compared(5.0).psnr_loss_db == pytest.approx(loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_that_are_no_numbers_are_out_of_bounds(value: float) -> None:
    found = compared(value)
    assert not found.relative_l2 <= 1e9


@pytest.mark.usefixtures("decode_in_process")
def test_probes_are_encoded_both_ways(small_kl_vae: Path) -> None:
    job = SmallJob(kl_vae=small_kl_vae, overrides=(BF16, "window.stride=1"))
    seen: list[int] = []
    found = calibrate(
        find_sources(["scenes:0:3:2"]),
        settings=job.settings,
        device="cpu",
        num_clips=2,
        on_clip=seen.append,
    )
    weights = job.encoders.kl_vae.weights_digest
    assert found.way == Way(kl_vae=weights, precision="bf16", is_compiled=False, device="cpu")
    assert found.num_images == 2 * (16 + 4)
    assert seen == [1, 2]
    # bfloat16 has 8 bits of mantissa: the means differ, and by no more than a few per cent.
    assert 1e-4 < found.relative_l2 < 0.1
    assert abs(found.psnr_loss_db) < 1


def test_the_encoder_without_a_decoder_cannot_be_calibrated() -> None:
    settings = load_config(
        IngestSettings, kind="ingest", overrides=(BF16, "kl_vae.source=identity")
    )
    with pytest.raises(ModelError, match="no decoder"):
        calibrate([], settings=settings, device="cpu", num_clips=1)


@pytest.mark.usefixtures("decode_in_process")
def test_an_ingest_in_bf16_goes_by_the_calibration(tmp_path: Path, small_kl_vae: Path) -> None:
    cache, job = SmallCache(tmp_path), SmallJob(kl_vae=small_kl_vae, overrides=(BF16,))
    with pytest.raises(ConfigError, match="mmldm calibrate PROBES"):
        cache.run(job, "scenes:0:1:2")
    way = Way(
        kl_vae=job.encoders.kl_vae.weights_digest,
        precision="bf16",
        is_compiled=False,
        device="cpu",
    )
    shown = Calibration(way=way, relative_l2=0.005, psnr_loss_db=0.05, num_images=40, versions="")
    write_calibration(shown, to=cache.layout)
    done = cache.ingest(job, "scenes:0:1:2")
    assert done.made == {"kl.video": 1, "kl.audio": 1}
    assert {row["tolerance"] for row in done.rows["latents"]} == {3e-2}
    recipe = read_recipe(cache.layout, cache.ref("current").recipes["kl.video"])
    table = dict(recipe.specification)["kl_vae"]
    assert isinstance(table, dict)
    assert table["calibrated"] == {"relative_l2": "0.01", "psnr_loss_db": "0.1"}


@pytest.mark.usefixtures("decode_in_process")
def test_the_command_writes_what_it_found_and_says_whether_it_will_do(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calibration.json"
    options = [option for override in SMALL for option in ("--set", override)]
    status = main(
        [
            *("calibrate", "scenes:0:1:2", "--kl-vae", str(small_kl_vae), "--precision", "bf16"),
            *("--out", str(file), *options),
        ]
    )
    found = Calibration.from_sealed(file.read_bytes())
    assert status == (0 if found.is_within_bounds else 1)
    assert found.figures in capsys.readouterr().out


@pytest.mark.parametrize("precision", [(), ("--precision", "tf32")])
def test_what_needs_no_calibration_gets_none(
    precision: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "f"), "--set", "run.device=cpu")
    assert main(["calibrate", "scenes:0:1:2", *precision, *out]) == 2
    assert "needs no calibration" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
