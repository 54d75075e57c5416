"""Guidance by context and by condition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.diffusion.guidance import (
    GuidanceKind,
    GuidanceScales,
    guided,
    guided_predict,
)
from training.diffusion.keyed_draws import keyed_noise
from training.diffusion.pair import Latents, LatentShapes
from training.diffusion.tasks import Condition, condition_for

SHAPES = LatentShapes(video=(2, 4, 4), audio=(2, 2, 2))
KEYS = [(0, window) for window in range(2)]
NOISY, CLEAN = (keyed_noise(SHAPES, seed=s, stream="noise", keys=KEYS) for s in range(2))
TIMESTEPS = torch.tensor([3, 900])
BOTH_ONE = GuidanceScales(video=1.0, audio=1.0)


class FakeDenoiser:
    """Predicts 100 for context, plus 10 for given audio, plus 1 for given video."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, noisy: Latents, timesteps: Tensor, condition: Condition) -> Latents:
        self.num_calls += 1
        told = 100.0 * condition.has_context
        told = told + 10.0 * condition.latents.audio.flatten(1).any(1)
        told = told + 1.0 * condition.latents.video.flatten(1).any(1)
        return noisy.map(lambda z: torch.zeros_like(z) + told[:, None, None, None])


def _value(latents: Latents) -> tuple[float, float]:
    video, audio = latents.video.unique(), latents.audio.unique()
    return video.item(), audio.item()


def test_each_modality_is_moved_by_its_own_scale() -> None:
    scales = GuidanceScales(video=9.0, audio=2.5)

    result = guided(NOISY, CLEAN, scales)

    video = NOISY.video.double() + 9.0 * (CLEAN.video.double() - NOISY.video.double())
    audio = NOISY.audio.double() + 2.5 * (CLEAN.audio.double() - NOISY.audio.double())
    # float32 of values up to 60.
    torch.testing.assert_close(result.video.double(), video, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.audio.double(), audio, atol=1e-5, rtol=0)


def test_it_is_the_papers_equation_9_with_a_plus() -> None:
    phi = 3.0

    result = guided(NOISY, CLEAN, GuidanceScales(video=phi, audio=phi))

    equation = CLEAN.map(lambda c, u: phi * c + (1 - phi) * u, NOISY)
    torch.testing.assert_close(result.video, equation.video, atol=1e-5, rtol=0)


def test_scale_1_is_the_conditional_prediction_bit_for_bit_in_that_modality() -> None:
    result = guided(NOISY, CLEAN, GuidanceScales(video=1.0, audio=4.0))

    assert torch.equal(result.video, CLEAN.video)
    assert not torch.equal(result.audio, CLEAN.audio)


def test_scales_around_1_tend_to_the_conditional_prediction() -> None:
    for scale in (1 - 1e-6, 1 + 1e-6):
        result = guided(NOISY, CLEAN, GuidanceScales(video=scale, audio=scale))
        torch.testing.assert_close(result.video, CLEAN.video, atol=1e-5, rtol=0)


def test_scale_0_is_the_unconditional_prediction() -> None:
    result = guided(NOISY, CLEAN, GuidanceScales(video=0.0, audio=0.0))

    assert torch.equal(result.video, NOISY.video)
    assert torch.equal(result.audio, NOISY.audio)


def test_context_guidance_leaves_out_the_context_and_keeps_what_is_given() -> None:
    condition = condition_for("a2v", CLEAN)

    predict = guided_predict(
        FakeDenoiser(), condition, kind="context", scales=GuidanceScales(video=3.0, audio=2.0)
    )

    # 10 + s * (110 - 10): the given audio is in both branches.
    assert _value(predict(NOISY, TIMESTEPS)) == (310.0, 210.0)


def test_condition_guidance_leaves_out_what_is_given_and_keeps_the_context() -> None:
    condition = condition_for("a2v", CLEAN)

    predict = guided_predict(
        FakeDenoiser(), condition, kind="condition", scales=GuidanceScales(video=3.0, audio=2.0)
    )

    # 100 + s * (110 - 100): the context is in both branches.
    assert _value(predict(NOISY, TIMESTEPS)) == (130.0, 120.0)


def test_with_nothing_given_guidance_by_condition_changes_nothing() -> None:
    condition = condition_for("svg", CLEAN)

    predict = guided_predict(FakeDenoiser(), condition, kind="condition", scales=GuidanceScales())

    assert _value(predict(NOISY, TIMESTEPS)) == (100.0, 100.0)


@pytest.mark.parametrize("kind", ["context", "condition"])
def test_with_both_scales_1_the_denoiser_runs_once(kind: GuidanceKind) -> None:
    denoiser = FakeDenoiser()

    predict = guided_predict(denoiser, condition_for("v2a", CLEAN), kind=kind, scales=BOTH_ONE)

    assert _value(predict(NOISY, TIMESTEPS)) == (101.0, 101.0)
    assert denoiser.num_calls == 1


def test_the_default_scales_are_those_of_the_authors_command() -> None:
    assert GuidanceScales() == GuidanceScales(video=9.0, audio=9.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_that_are_not_finite_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        GuidanceScales(audio=scale)


def test_an_unknown_kind_is_refused() -> None:
    kind: GuidanceKind = "both"  # type: ignore[assignment]  # the point of the test
    with pytest.raises(ValueError, match="kind is 'both'"):
        guided_predict(FakeDenoiser(), condition_for("svg", CLEAN), kind=kind, scales=BOTH_ONE)
