"""Held-out losses: every case on the same windows, noise and timesteps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.dit.small_runs import all_batches, small_cache
from training.diffusion.pair import Latents
from training.diffusion.schedule import linear_schedule
from training.diffusion.tasks import Condition
from training.dit.settings import ValidationSettings
from training.dit.validation import Validator, foreign_windows

SETTINGS = ValidationSettings(every_steps=1, num_windows=40, draws=20, batch_size=7)


def validator(cache: str, settings: ValidationSettings = SETTINGS) -> Validator:
    return Validator(all_batches(cache), linear_schedule(), settings, device="cpu")


def predict_zero(noisy: Latents, timesteps: torch.Tensor, condition: Condition) -> Latents:
    return noisy.map(torch.zeros_like)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("cache"))


def test_predicting_nothing_costs_the_variance_of_noise(cache: str) -> None:
    losses = validator(cache).validate(predict_zero).losses
    assert losses["svg"].video == pytest.approx(1, abs=0.02)
    assert losses["svg"].audio == pytest.approx(1, abs=0.04)
    assert losses["svg"] == losses["a2v"] == losses["v2a shuffled"]


def test_the_linear_denoiser_costs_what_its_formula_says(cache: str) -> None:
    loss = validator(cache).validate(predict_zero).losses["linear"]
    # Of whitened latents: the mean of alpha bar over all timesteps.
    wanted = float(linear_schedule().alpha_bars.mean())
    assert loss.video == pytest.approx(wanted, rel=0.05)
    assert loss.audio == pytest.approx(wanted, rel=0.05)


def test_losses_do_not_depend_on_the_batch_size(cache: str) -> None:
    def depends(noisy: Latents, timesteps: torch.Tensor, condition: Condition) -> Latents:
        return noisy.map(lambda noisy, given: noisy + given, condition.latents)

    one, other = (
        validator(
            cache, ValidationSettings(every_steps=1, num_windows=12, draws=3, batch_size=size)
        ).validate(depends)
        for size in (1, 12)
    )
    for case, loss in one.losses.items():
        assert loss.video == pytest.approx(other.losses[case].video, rel=1e-6)


def test_a_denoiser_is_told_what_each_case_gives(cache: str) -> None:
    told: list[tuple[bool, bool]] = []

    def note(noisy: Latents, timesteps: torch.Tensor, condition: Condition) -> Latents:
        told.append((bool(condition.has_video.any()), bool(condition.has_audio.any())))
        return noisy

    settings = ValidationSettings(every_steps=1, num_windows=4, draws=1, batch_size=4)
    validator(cache, settings).validate(note)
    assert told == [(False, False), (False, True), (True, False), (False, True), (True, False)]


def test_a_foreign_window_is_of_another_source(cache: str) -> None:
    found = validator(cache)
    batches = all_batches(cache)
    others = foreign_windows(batches, found.windows)
    for window, other in zip(found.windows, others, strict=True):
        assert batches.windows.place(int(window))[0] != batches.windows.place(int(other))[0]


def test_where_one_source_is_held_out_nothing_is_shuffled(tmp_path: Path) -> None:
    lone = small_cache(tmp_path / "cache", num_clips=1)
    losses = validator(lone).validate(predict_zero).losses
    assert losses.keys() == {"svg", "a2v", "v2a", "linear"}
