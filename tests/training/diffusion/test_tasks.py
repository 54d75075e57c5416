"""Which task a sample trains, and what the denoiser is told."""

from __future__ import annotations

import math

import pytest
import torch

from training.diffusion.keyed_draws import keyed_noise, keyed_uniforms
from training.diffusion.pair import LatentShapes
from training.diffusion.tasks import (
    DrawnTasks,
    Task,
    TaskProbabilities,
    condition_for,
    draw_tasks,
)

NUM = 10_000
KEYS = [(0, window) for window in range(NUM)]
SHAPES = LatentShapes(video=(2, 4, 4), audio=(2, 2, 2))
CLEAN = keyed_noise(SHAPES, seed=0, stream="noise", keys=KEYS[:4])


@pytest.fixture(scope="module")
def drawn() -> DrawnTasks:
    return draw_tasks(TaskProbabilities(), seed=0, keys=KEYS)


def _draw(**probabilities: float) -> DrawnTasks:
    return draw_tasks(TaskProbabilities(**probabilities), seed=0, keys=KEYS[:200])


def _share(of: torch.Tensor) -> float:
    return of.double().mean().item()


def _close_to(share: float) -> object:
    """Within five standard deviations of a share of `NUM`."""
    return pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / NUM))


def test_one_sample_in_ten_has_no_context_and_4_3_percent_have_each_condition(
    drawn: DrawnTasks,
) -> None:
    plain = drawn.has_context & ~drawn.gives_audio & ~drawn.gives_video

    assert _share(~drawn.has_context) == _close_to(0.1)
    assert _share(drawn.gives_audio) == _close_to(0.9 * 0.05 * 0.95)
    assert _share(drawn.gives_video) == _close_to(0.9 * 0.05 * 0.95)
    assert _share(plain) == _close_to(0.9 * (0.95**2 + 0.05**2))


def test_a_sample_without_context_is_given_nothing(drawn: DrawnTasks) -> None:
    assert not (~drawn.has_context & (drawn.gives_audio | drawn.gives_video)).any()


def test_no_sample_is_given_both(drawn: DrawnTasks) -> None:
    assert not (drawn.gives_audio & drawn.gives_video).any()


def test_where_both_would_be_given_neither_is() -> None:
    drawn = _draw(no_context=0.0, audio_to_video=1.0, video_to_audio=1.0)

    assert drawn.has_context.all()
    assert not drawn.gives_audio.any()
    assert not drawn.gives_video.any()


def test_probabilities_of_1_are_always() -> None:
    assert _draw(no_context=0.0, audio_to_video=1.0, video_to_audio=0.0).gives_audio.all()
    assert _draw(no_context=0.0, audio_to_video=0.0, video_to_audio=1.0).gives_video.all()
    assert not _draw(no_context=1.0, audio_to_video=1.0, video_to_audio=0.0).has_context.any()


def test_the_draw_follows_the_three_uniform_numbers_of_the_sample(drawn: DrawnTasks) -> None:
    context, audio, video = keyed_uniforms(3, seed=0, stream="task", keys=KEYS).unbind(1)

    assert torch.equal(drawn.has_context, context >= 0.1)
    given = (context >= 0.1) & (audio < 0.05) & (video >= 0.05)
    assert torch.equal(drawn.gives_audio, given)


def test_a_samples_task_is_the_same_in_any_batch(drawn: DrawnTasks) -> None:
    part = draw_tasks(TaskProbabilities(), seed=0, keys=KEYS[100:200])

    assert torch.equal(part.gives_audio, drawn.gives_audio[100:200])
    assert torch.equal(part.has_context, drawn.has_context[100:200])


def test_the_condition_is_the_clean_latent_of_what_is_given_and_0_elsewhere() -> None:
    tasks = DrawnTasks(
        has_context=torch.tensor([True, True, True, False]),
        gives_audio=torch.tensor([True, False, False, False]),
        gives_video=torch.tensor([False, True, False, False]),
    )

    condition = tasks.condition(CLEAN)

    assert torch.equal(condition.latents.audio[0], CLEAN.audio[0])
    assert torch.equal(condition.latents.video[1], CLEAN.video[1])
    assert not condition.latents.audio[1:].any()
    assert not condition.latents.video[[0, 2, 3]].any()
    assert condition.has_context.tolist() == [True, True, True, False]
    assert condition.has_audio.tolist() == [True, False, False, False]
    assert condition.has_video.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("task", "has_audio", "has_video"),
    [("svg", False, False), ("a2v", True, False), ("v2a", False, True)],
)
def test_sampling_a_task_gives_what_it_is_named_for(
    task: Task, has_audio: bool, has_video: bool
) -> None:
    condition = condition_for(task, CLEAN)

    assert torch.equal(condition.latents.audio, CLEAN.audio * has_audio)
    assert torch.equal(condition.latents.video, CLEAN.video * has_video)
    assert condition.has_audio.tolist() == [has_audio] * 4
    assert condition.has_video.tolist() == [has_video] * 4
    assert condition.has_context.all()


def test_less_can_be_told() -> None:
    condition = condition_for("a2v", CLEAN)

    assert not condition.without_context().has_context.any()
    assert condition.without_context().has_audio.all()
    assert torch.equal(condition.without_context().latents.audio, CLEAN.audio)
    assert condition.without_latents().has_context.all()
    assert not condition.without_latents().has_audio.any()
    assert not condition.without_latents().latents.audio.any()


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task is 'v2v'"):
        condition_for("v2v", CLEAN)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_probabilities_beyond_0_and_1_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="video_to_audio is"):
        TaskProbabilities(video_to_audio=value)
