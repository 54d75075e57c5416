"""DDIM, against the map of noise to latents that is known in closed form for Gaussians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.diffusion.keyed_draws import keyed_noise
from training.diffusion.objective import LinearDenoiser
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.sampler import (
    ddim_sample,
    ddim_timesteps,
    initial_noise,
    keyed_step_noise,
)
from training.diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()
ALPHA_BARS = SCHEDULE.alpha_bars
SHAPES = LatentShapes(video=(4, 4, 4), audio=(4, 2, 2))
MEAN = torch.tensor([0.0, 0.5, -2.0, 1.0], dtype=torch.float64)[:, None, None]
STD = torch.tensor([1.0, 0.3, 3.0, 0.5], dtype=torch.float64)[:, None, None]
NOISE = initial_noise(SHAPES, seed=0, indices=range(3)).to("cpu", torch.float64)


def predict_exactly(noisy: Latents, timesteps: Tensor) -> Latents:
    """The expected noise where latents are N(MEAN, STD²) in each channel."""
    alpha_bar = ALPHA_BARS[timesteps][:, None, None, None]
    gain = (1 - alpha_bar).sqrt() / (alpha_bar * STD**2 + 1 - alpha_bar)
    return noisy.map(lambda z: gain * (z - alpha_bar.sqrt() * MEAN))


def flow(noise: Tensor, start: int) -> Tensor:
    """Where the probability flow takes noise from timestep ``start`` to timestep 0.

    Noisy latents are N(√ᾱ·MEAN, ᾱ·STD² + 1 - ᾱ) at every timestep, and the flow keeps each value
    at its quantile.
    """
    first, last = ALPHA_BARS[start], ALPHA_BARS[0]
    spread = ((last * STD**2 + 1 - last) / (first * STD**2 + 1 - first)).sqrt()
    return last.sqrt() * MEAN + spread * (noise - first.sqrt() * MEAN)


def relative_error(num_steps: int) -> float:
    """Largest error of a value's distance from its channel's mean, beside that distance."""
    sampled = ddim_sample(predict_exactly, NOISE, schedule=SCHEDULE, num_steps=num_steps)
    mean = ALPHA_BARS[0].sqrt() * MEAN

    def error(sampled: Tensor, noise: Tensor) -> Tensor:
        exact = flow(noise, ddim_timesteps(num_steps)[-1])
        return (sampled - exact) / (exact - mean)

    errors = sampled.map(error, NOISE)
    return max(errors.video.abs().max().item(), errors.audio.abs().max().item())


def test_fifty_steps_visit_the_uniform_timesteps_of_latent_diffusion() -> None:
    assert ddim_timesteps(50) == list(range(1, 1000, 20))


@pytest.mark.parametrize("num_steps", [1, 2, 30, 300, 333, 600, 999])
def test_as_many_different_timesteps_are_visited_as_asked_for(num_steps: int) -> None:
    timesteps = ddim_timesteps(num_steps)

    assert len(timesteps) == len(set(timesteps)) == num_steps
    assert timesteps == sorted(timesteps)
    assert timesteps[0] == 1
    assert timesteps[-1] <= 999


def test_a_thousand_steps_visit_every_timestep() -> None:
    assert ddim_timesteps(1000) == list(range(1000))


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_other_numbers_of_steps_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=r"1 \.\.\. 1000"):
        ddim_timesteps(num_steps)


@pytest.mark.parametrize("num_steps", [10, 50, 1000])
def test_each_step_turns_signal_and_noise_as_far_as_the_schedule_says(num_steps: int) -> None:
    sampled = ddim_sample(predict_exactly, NOISE, schedule=SCHEDULE, num_steps=num_steps)

    # With the exact prediction, a step projects the vector (√ᾱ·STD, √(1 - ᾱ)) onto the next one.
    alpha_bars = ALPHA_BARS[[0, *ddim_timesteps(num_steps)]][:, None, None, None]
    lengths = (alpha_bars * STD**2 + 1 - alpha_bars).sqrt()
    angles = torch.atan2((1 - alpha_bars).sqrt(), alpha_bars.sqrt() * STD)
    gain = lengths[0] / lengths[-1] * angles.diff(dim=0).cos().prod(0)
    means = alpha_bars.sqrt() * MEAN
    torch.testing.assert_close(sampled.video, means[0] + gain * (NOISE.video - means[-1]))
    torch.testing.assert_close(sampled.audio, means[0] + gain * (NOISE.audio - means[-1]))


def test_a_thousand_steps_follow_the_probability_flow() -> None:
    # What is left is the product of the cosines between steps: 1 - 0.0051 in the channel of
    # standard deviation 0.3, 1 - 0.0014 in that of 1.
    assert relative_error(1000) < 0.0052


def test_the_distance_from_the_flow_falls_almost_as_1_over_the_number_of_steps() -> None:
    errors = [relative_error(num_steps) for num_steps in (20, 100, 500)]

    # A method of first order, which turns by large angles where the noise goes from little to 0.
    assert 4 < errors[0] / errors[1] < errors[1] / errors[2] < 5


def test_the_last_step_ends_at_alpha_bar_of_timestep_0() -> None:
    sampled = ddim_sample(predict_exactly, NOISE, schedule=SCHEDULE, num_steps=1)

    noise = predict_exactly(NOISE, torch.ones(3, dtype=torch.int64)).video
    clean = (NOISE.video - (1 - ALPHA_BARS[1]).sqrt() * noise) / ALPHA_BARS[1].sqrt()
    wanted = ALPHA_BARS[0].sqrt() * clean + (1 - ALPHA_BARS[0]).sqrt() * noise
    torch.testing.assert_close(sampled.video, wanted)


def test_the_denoiser_is_asked_once_a_step_from_the_noisiest_down() -> None:
    asked = []

    def predict(noisy: Latents, timesteps: Tensor) -> Latents:
        asked.append(timesteps.tolist())
        return noisy

    ddim_sample(predict, NOISE, schedule=SCHEDULE, num_steps=4)

    assert asked == [[t] * 3 for t in (751, 501, 251, 1)]


def test_a_sample_is_the_same_at_any_batch_size() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    denoiser = LinearDenoiser(schedule=SCHEDULE, video_variance=ones, audio_variance=2 * ones)

    def sample(indices: list[int]) -> Latents:
        return ddim_sample(
            denoiser,
            initial_noise(SHAPES, seed=5, indices=indices),
            schedule=SCHEDULE,
            num_steps=10,
            eta=0.5,
            step_noise=keyed_step_noise(SHAPES, seed=5, indices=indices),
        )

    together = sample([0, 1, 2, 3])

    assert torch.equal(sample([2]).video[0], together.video[2])
    assert torch.equal(sample([3, 1]).audio[1], together.audio[1])


def test_sampling_keeps_the_type_of_the_noise_it_starts_from() -> None:
    noise = NOISE.to("cpu", torch.float32)

    def predict(noisy: Latents, timesteps: Tensor) -> Latents:
        return noisy.to("cpu", torch.bfloat16)

    sampled = ddim_sample(predict, noise, schedule=SCHEDULE, num_steps=2)

    assert sampled.video.dtype == torch.float32


def test_float32_stays_close_to_float64() -> None:
    single = ddim_sample(predict_exactly, NOISE.to("cpu", torch.float32), schedule=SCHEDULE)
    double = ddim_sample(predict_exactly, NOISE, schedule=SCHEDULE)

    # 50 steps of rounding at 6e-8, of values up to 12.
    torch.testing.assert_close(single.video.double(), double.video, atol=2e-5, rtol=0)


def test_with_eta_1_and_no_noise_a_step_shrinks_unit_gaussians_by_the_signal_lost() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    denoiser = LinearDenoiser(schedule=SCHEDULE, video_variance=ones, audio_variance=ones)
    nothing = NOISE.map(torch.zeros_like)

    sampled = ddim_sample(
        denoiser, NOISE, schedule=SCHEDULE, num_steps=50, eta=1.0, step_noise=lambda _: nothing
    )

    # Of variance 1, the ancestral posterior has mean √(ᾱ / ᾱ_prev) · x: the product telescopes.
    torch.testing.assert_close(
        sampled.video, (ALPHA_BARS[981] / ALPHA_BARS[0]).sqrt() * NOISE.video
    )


def test_noise_of_a_step_has_the_variance_of_ancestral_sampling_times_eta_squared() -> None:
    step_noise = keyed_noise(SHAPES, seed=9, stream="step", keys=[(i,) for i in range(3)])
    nothing = NOISE.map(torch.zeros_like)

    def sample(added: Latents) -> Latents:
        return ddim_sample(
            predict_exactly,
            NOISE,
            schedule=SCHEDULE,
            num_steps=1,
            eta=0.5,
            step_noise=lambda _: added,
        )

    before, here = ALPHA_BARS[0], ALPHA_BARS[1]
    sigma = 0.5 * ((1 - before) / (1 - here) * (1 - here / before)).sqrt()
    difference = sample(step_noise).map(torch.sub, sample(nothing))
    torch.testing.assert_close(difference.audio, sigma * step_noise.audio.double())


def test_the_noise_of_samples_and_steps_is_keyed() -> None:
    first = keyed_step_noise(SHAPES, seed=0, indices=[4])(21)

    assert torch.equal(keyed_step_noise(SHAPES, seed=0, indices=[3, 4])(21).video[1:], first.video)
    assert not torch.equal(keyed_step_noise(SHAPES, seed=0, indices=[4])(1).video, first.video)
    assert not torch.equal(initial_noise(SHAPES, seed=0, indices=[4]).video, first.video)


@pytest.mark.parametrize(
    ("eta", "has_noise", "message"),
    [(0.5, False, "step_noise goes with"), (0.0, True, "step_noise goes with"), (1.5, True, "eta")],
)
def test_eta_without_noise_and_noise_without_eta_are_refused(
    eta: float, has_noise: bool, message: str
) -> None:
    step_noise = keyed_step_noise(SHAPES, seed=0, indices=range(3)) if has_noise else None

    with pytest.raises(ValueError, match=message):
        ddim_sample(predict_exactly, NOISE, schedule=SCHEDULE, eta=eta, step_noise=step_noise)
