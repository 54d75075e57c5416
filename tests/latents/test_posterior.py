"""Moments to latents: the mode, or a draw."""

from __future__ import annotations

import math

import pytest
import torch

from latents.posterior import posterior_draw, posterior_mode, split_moments


def _moments(mean: float, logvar: float) -> torch.Tensor:
    return torch.tensor([mean, logvar]).half().reshape(1, 2, 1, 1)


def test_the_mode_is_the_first_half_of_the_channels_as_float32() -> None:
    moments = torch.arange(2 * 8 * 2 * 2).reshape(2, 8, 2, 2).half()

    mode = posterior_mode(moments)

    assert mode.dtype == torch.float32
    assert torch.equal(mode, moments[:, :4].float())


def test_a_draw_is_the_mean_plus_the_standard_deviation_times_the_noise() -> None:
    moments = _moments(0.5, 2 * math.log(3))

    drawn = posterior_draw(moments, torch.full((1, 1, 1, 1), 2.0))

    # float16 rounds the log-variance, 2.197, by at most 2**-10.
    assert drawn.item() == pytest.approx(0.5 + 3 * 2, rel=2**-11)


@pytest.mark.parametrize(("stored", "read"), [(-31.0, -30.0), (-30.0, -30.0), (25.0, 20.0)])
def test_log_variances_are_clamped_as_the_encoders_clamp_them(stored: float, read: float) -> None:
    assert split_moments(_moments(0.0, stored))[1].item() == read


def test_the_moments_of_many_draws_are_those_stored() -> None:
    noise = torch.randn((200_000, 1, 1, 1), generator=torch.Generator().manual_seed(0))

    drawn = posterior_draw(_moments(-1.0, 1.0).expand(200_000, -1, -1, -1), noise)

    # Five standard errors: std / sqrt(n) of a mean, variance * sqrt(2 / n) of a variance.
    assert drawn.mean().item() == pytest.approx(-1.0, abs=5 * math.e**0.5 / 200_000**0.5)
    assert drawn.var().item() == pytest.approx(math.e, rel=5 * (2 / 200_000) ** 0.5)


def test_leading_axes_stay() -> None:
    moments = torch.randn(3, 5, 8, 2, 2, generator=torch.Generator().manual_seed(0))

    assert posterior_draw(moments, torch.zeros(3, 5, 4, 2, 2)).shape == (3, 5, 4, 2, 2)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2)])
def test_moments_without_two_halves_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mean then logvar"):
        posterior_mode(torch.zeros(shape))


def test_noise_that_would_be_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match="noise has shape"):
        posterior_draw(torch.zeros(2, 8, 2, 2), torch.zeros(4, 2, 2))
