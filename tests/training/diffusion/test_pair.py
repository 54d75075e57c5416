"""The two latents of a window."""

from __future__ import annotations

import pytest
import torch

from training.diffusion.pair import Latents, LatentShapes


def _latents(video: float, audio: float) -> Latents:
    return Latents(video=torch.full((2, 3, 4, 4), video), audio=torch.full((2, 3, 2, 2), audio))


def test_map_takes_each_modality_with_the_same_modality_of_the_others() -> None:
    total = _latents(1.0, 2.0).map(lambda *parts: sum(parts), _latents(10, 20), _latents(100, 200))

    assert total.video.unique().tolist() == [111]
    assert total.audio.unique().tolist() == [222]


def test_shapes_are_those_of_one_window() -> None:
    latents = _latents(0.0, 0.0)

    assert latents.shapes == LatentShapes(video=(3, 4, 4), audio=(3, 2, 2))
    assert len(latents) == 2


def test_a_type_can_be_given_with_the_device() -> None:
    assert _latents(0.0, 0.0).to("cpu", torch.float16).audio.dtype == torch.float16
    assert _latents(0.0, 0.0).to("cpu").audio.dtype == torch.float32


@pytest.mark.parametrize("audio", [(3, 3, 2, 2), (2, 3, 2)])
def test_tensors_that_are_no_pair_are_refused(audio: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with one batch"):
        Latents(video=torch.zeros(2, 3, 4, 4), audio=torch.zeros(audio))
