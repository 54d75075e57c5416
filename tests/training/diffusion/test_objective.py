"""The loss, its figures by timestep, and the linear baseline."""

from __future__ import annotations

import pytest
import torch

from training.diffusion.keyed_draws import keyed_noise
from training.diffusion.objective import LinearDenoiser, NoiseLoss, bucket_losses, noise_loss
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.schedule import linear_schedule

SHAPES = LatentShapes(video=(2, 4, 4), audio=(2, 2, 2))


def _constant(video: list[float], audio: list[float]) -> Latents:
    return Latents(
        video=torch.tensor(video)[:, None, None, None].expand(-1, 2, 4, 4),
        audio=torch.tensor(audio)[:, None, None, None].expand(-1, 2, 2, 2),
    )


def _unit_denoiser() -> LinearDenoiser:
    ones = torch.ones(2, dtype=torch.float64)
    return LinearDenoiser(schedule=linear_schedule(), video_variance=ones, audio_variance=ones)


def test_the_loss_is_the_sum_of_both_modalities_mean_squared_errors() -> None:
    loss = noise_loss(_constant([1.0, 3.0], [0.0, 2.0]), _constant([0.0, 0.0], [0.0, 0.0]))

    assert loss.video.tolist() == [1.0, 9.0]
    assert loss.audio.tolist() == [0.0, 4.0]
    assert loss.total.item() == 5.0 + 2.0


def test_the_papers_loss_is_half_of_each() -> None:
    prediction, noise = _constant([1.0, 3.0], [0.0, 2.0]), _constant([0.0, 0.0], [0.0, 0.0])

    assert noise_loss(prediction, noise, weighting="mean").total.item() == 3.5


def test_each_modality_counts_alike_though_video_has_more_values() -> None:
    nothing = _constant([0.0], [0.0])

    video_wrong = noise_loss(_constant([1.0], [0.0]), nothing)
    audio_wrong = noise_loss(_constant([0.0], [1.0]), nothing)

    assert video_wrong.total.item() == audio_wrong.total.item() == 1.0


def test_errors_of_half_precision_predictions_are_taken_in_float32() -> None:
    loss = noise_loss(_constant([300.0], [0.0]).to("cpu", torch.float16), _constant([0.0], [0.0]))

    assert loss.video.item() == 90_000.0  # beyond float16


def test_a_prediction_that_would_be_broadcast_is_refused() -> None:
    wrong = Latents(video=torch.zeros(1, 1, 4, 4), audio=torch.zeros(1, 2, 2, 2))

    with pytest.raises(ValueError, match="the prediction has shape"):
        noise_loss(wrong, _constant([0.0], [0.0]))


def test_losses_are_put_into_buckets_of_timesteps() -> None:
    loss = NoiseLoss(
        total=torch.tensor(0.0),
        video=torch.tensor([1.0, 3.0, 5.0, 7.0]),
        audio=torch.tensor([0.0, 2.0, 4.0, 6.0]),
    )

    buckets = bucket_losses(loss, torch.tensor([0, 99, 100, 999]))

    assert buckets.count.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert buckets.video[[0, 1, 9]].tolist() == [2.0, 5.0, 7.0]
    assert buckets.audio[[0, 1, 9]].tolist() == [1.0, 4.0, 6.0]
    assert buckets.video[2].isnan()


def test_buckets_of_batches_add_up_to_those_of_all() -> None:
    values, timesteps = torch.arange(8.0), torch.arange(8) * 125
    whole = NoiseLoss(total=values.sum(), video=values, audio=2 * values)
    parts = [
        bucket_losses(
            NoiseLoss(total=values.sum(), video=values[part], audio=2 * values[part]),
            timesteps[part],
            num_buckets=2,
        )
        for part in (slice(0, 3), slice(3, 8))
    ]

    together = parts[0] + parts[1]

    assert together.video.tolist() == bucket_losses(whole, timesteps, num_buckets=2).video.tolist()
    assert together.video.tolist() == [1.5, 5.5]
    assert together.audio.tolist() == [3.0, 11.0]


def test_on_unit_variance_the_linear_denoiser_multiplies_by_the_share_of_noise() -> None:
    schedule, timesteps = linear_schedule(), torch.tensor([0, 500, 999])
    noisy = keyed_noise(SHAPES, seed=0, stream="noise", keys=[(0, i) for i in range(3)])

    predicted = _unit_denoiser()(noisy, timesteps)

    sigma = (1 - schedule.alpha_bars[timesteps]).sqrt().float()[:, None, None, None]
    torch.testing.assert_close(predicted.video, sigma * noisy.video)
    torch.testing.assert_close(predicted.audio, sigma * noisy.audio)


def test_on_unit_variance_the_expected_loss_is_alpha_bar() -> None:
    denoiser = _unit_denoiser()

    torch.testing.assert_close(denoiser.expected_video_loss(), denoiser.schedule.alpha_bars)
    torch.testing.assert_close(denoiser.expected_audio_loss(), denoiser.schedule.alpha_bars)


def test_the_linear_denoiser_reaches_the_loss_expected_of_it() -> None:
    schedule, num, timestep = linear_schedule(), 2000, 400
    variance = torch.tensor([0.25, 4.0], dtype=torch.float64)
    denoiser = LinearDenoiser(schedule=schedule, video_variance=variance, audio_variance=variance)
    clean, noise = (
        keyed_noise(SHAPES, seed=seed, stream="noise", keys=[(0, i) for i in range(num)])
        for seed in (0, 1)
    )
    clean = clean.map(lambda z: z * variance.sqrt().float()[:, None, None])
    timesteps = torch.full((num,), timestep)

    loss = noise_loss(denoiser(schedule.noised(clean, noise, timesteps), timesteps), noise)

    expected = denoiser.expected_video_loss()[timestep].item()
    # Five standard errors of a mean of 64 000 squares of normal numbers; audio has 16 000.
    assert loss.video.mean().item() == pytest.approx(expected, rel=5 * (2 / 32_000) ** 0.5)
    assert loss.audio.mean().item() == pytest.approx(expected, rel=5 * (2 / 8_000) ** 0.5)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_no_other_multiple_does_better(factor: float) -> None:
    alpha_bars, variance = linear_schedule().alpha_bars, 0.7
    denoiser = LinearDenoiser(
        schedule=linear_schedule(),
        video_variance=torch.tensor([variance], dtype=torch.float64),
        audio_variance=torch.tensor([variance], dtype=torch.float64),
    )
    total = alpha_bars * variance + 1 - alpha_bars
    gain = factor * (1 - alpha_bars).sqrt() / total

    # E (gain * noisy - noise)², with covariance √(1 - ᾱ) between the two.
    other = gain**2 * total - 2 * gain * (1 - alpha_bars).sqrt() + 1

    assert (other > denoiser.expected_video_loss()).all()


def test_the_expected_loss_is_the_mean_over_channels() -> None:
    denoiser = LinearDenoiser(
        schedule=linear_schedule(),
        video_variance=torch.tensor([1.0, 0.0], dtype=torch.float64),
        audio_variance=torch.tensor([1.0], dtype=torch.float64),
    )

    # A channel that never varies gives its noise away.
    torch.testing.assert_close(denoiser.expected_video_loss(), denoiser.schedule.alpha_bars / 2)
