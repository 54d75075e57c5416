"""How much noise a timestep has."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from training.diffusion.keyed_draws import keyed_noise
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.schedule import NoiseSchedule, linear_schedule

SHAPES = LatentShapes(video=(2, 4, 4), audio=(2, 2, 2))
KEYS = [(0, window) for window in range(4)]
TIMESTEPS = torch.tensor([0, 1, 500, 999])


def _latents(seed: int) -> Latents:
    return keyed_noise(SHAPES, seed=seed, stream="noise", keys=KEYS)


def test_the_linear_schedule_has_betas_whose_roots_go_in_equal_steps() -> None:
    alpha_bars = linear_schedule().alpha_bars

    betas = 1 - alpha_bars / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    steps = betas.sqrt().diff()
    assert alpha_bars.dtype == torch.float64
    assert betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.0120], rel=1e-12)
    # A beta is what is left of 1 minus a quotient near 1: rounded at 1e-16, 1e-13 of itself.
    torch.testing.assert_close(steps, steps[:1].expand(999), rtol=1e-8, atol=0)


def test_alpha_bar_is_the_product_of_1_minus_beta_up_to_the_timestep() -> None:
    first, last = 0.00085**0.5, 0.0120**0.5
    product = Fraction(1)
    for timestep in range(4):
        product *= 1 - Fraction(first + (last - first) * timestep / 3) ** 2

    assert linear_schedule(num_timesteps=4).alpha_bars[-1].item() == pytest.approx(
        float(product), rel=1e-14
    )


def test_the_schedule_ends_almost_at_noise() -> None:
    alpha_bars = linear_schedule().alpha_bars

    assert (alpha_bars.diff() < 0).all()
    assert alpha_bars[0].item() == pytest.approx(1 - 0.00085, rel=1e-14)
    assert 0.004 < alpha_bars[-1] < 0.005


def test_noisy_latents_are_a_mix_by_each_samples_timestep() -> None:
    schedule, clean, noise = linear_schedule(), _latents(0), _latents(1)

    noisy = schedule.noised(clean, noise, TIMESTEPS)

    for index, timestep in enumerate(TIMESTEPS):
        alpha_bar = schedule.alpha_bars[timestep].item()
        for part in ("video", "audio"):
            wanted = getattr(clean, part)[index].double() * alpha_bar**0.5
            wanted += getattr(noise, part)[index].double() * (1 - alpha_bar) ** 0.5
            # float32: two products and a sum of values up to 5.
            torch.testing.assert_close(
                getattr(noisy, part)[index].double(), wanted, atol=1e-6, rtol=0
            )


def test_taking_the_noise_away_gives_the_clean_latents() -> None:
    schedule, clean, noise = linear_schedule(), _latents(0), _latents(1)

    back = schedule.denoised(schedule.noised(clean, noise, TIMESTEPS), noise, TIMESTEPS)

    # At timestep 999 float32 rounding is divided by a signal of 0.068.
    torch.testing.assert_close(back.video, clean.video, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.audio, clean.audio, atol=1e-5, rtol=0)


def test_noisy_latents_of_unit_variance_keep_it_at_every_timestep() -> None:
    schedule = linear_schedule()
    signal, noise = schedule.alpha_bars.sqrt(), (1 - schedule.alpha_bars).sqrt()

    torch.testing.assert_close(signal**2 + noise**2, torch.ones(1000, dtype=torch.float64))


def test_settings_that_make_no_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="num_timesteps is 0"):
        linear_schedule(num_timesteps=0)
    with pytest.raises(ValueError, match="first_beta <= last_beta"):
        linear_schedule(first_beta=0.02, last_beta=0.01)
    with pytest.raises(ValueError, match="alpha_bars must be float64"):
        NoiseSchedule(alpha_bars=torch.ones(3))
