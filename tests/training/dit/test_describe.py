"""Sizes of the bundled models, against the paper's table and closed formulas."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from latents.config import build_dataclass, preset_names
from training.dit.config import DiTConfig
from training.dit.describe import describe
from training.dit.model import DiT

PRESETS = Path(__file__).resolve().parents[3] / "configs/dit"
PUBLISHED = {"S": (131.6, 34.0), "B": (384.5, 100.6), "L": (1543.68, 407.3), "XL": (677.7, 178.2)}
"""Millions of parameters, and billions of multiply-accumulates."""


def preset(name: str) -> DiTConfig:
    tables = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    return build_dataclass(DiTConfig, tables["model"], path="model.")


def num_parameters(config: DiTConfig) -> int:
    """With MM-LDM's latents and context, written out."""
    d = config.width
    blocks = config.depth * (18 * d**2 + 15 * d)
    timestep = d**2 + 258 * d
    context = 769 * d
    final = 2 * (2 * d**2 + 2 * d + 16 * d + 16)
    latents, positions, eos = 4 * 17 * d, 320 * d, 2 * d
    return blocks + timestep + context + final + latents + positions + eos


def num_macs(config: DiTConfig) -> int:
    d = config.width
    blocks = config.depth * (12 * 399 * d**2 + 6 * d**2)
    timestep, context, latents = d**2 + 256 * d, 77 * 768 * d, 640 * 16 * d
    final = 4 * d**2 + 320 * 16 * d
    return blocks + timestep + context + latents + final


def test_the_bundled_sizes_are_the_published_ones_and_a_tiny_one() -> None:
    sizes = set(preset_names("dit")) - {"finetune"}  # of any size
    assert sizes == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_sizes_are_met(name: str) -> None:
    size = describe(preset(name))

    millions, billions = PUBLISHED[name]
    assert size.num_parameters / 1e6 == pytest.approx(millions, rel=1e-3)
    assert size.gmacs == pytest.approx(billions, rel=1e-3)
    assert size.num_tokens == 399


@pytest.mark.parametrize("name", [*PUBLISHED, "tiny"])
def test_counts_equal_the_formulas_exactly(name: str) -> None:
    config = preset(name)

    size = describe(config)

    assert size.num_parameters == num_parameters(config)
    assert size.num_context_parameters == 77 * 768
    assert size.gmacs == num_macs(config) / 1e9


def test_every_parameter_is_counted_once() -> None:
    config = replace(preset("tiny"), depth=2)

    size = describe(config)

    num_all = sum(parameter.numel() for parameter in DiT(config).parameters())
    assert size.num_parameters + size.num_context_parameters == num_all


def test_the_tiny_model_fits_a_file_of_4_mb_in_float16() -> None:
    size = describe(preset("tiny"))

    assert 2 * (size.num_parameters + size.num_context_parameters) < 4_000_000


def test_tokens_follow_the_sizes_of_the_latents() -> None:
    config = replace(preset("tiny"), context_tokens=5, video_size=4, audio_size=2)

    assert describe(config).num_tokens == 5 + 1 + 4 + 1 + 16
