"""The linear way past an encoder's trunk, and that encoders without one stay what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latents.models.encoder_blocks import draw_weights
from latents.models.frozen_modal_encoders import architecture_of
from latents.models.modal_encoder_config import AUDIO_CONFIGS, VIDEO_CONFIGS
from latents.models.modal_encoder_files import (
    CONFIG_FILE,
    load_modal_encoders,
    random_modal_encoders,
    save_modal_encoders,
)
from latents.models.modal_encoders import AudioEncoder, VideoEncoder

VIDEO = replace(VIDEO_CONFIGS["tiny"], key_frames=tuple(range(16)), shortcut_kernel=4)
AUDIO = replace(AUDIO_CONFIGS["tiny"], shortcut_kernel=8)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fresh(start: Any = "zero") -> tuple[VideoEncoder, AudioEncoder]:
    encoders = VideoEncoder(VIDEO), AudioEncoder(AUDIO)
    for encoder in encoders:
        draw_weights(encoder, key="shortcut", start=start)
    return encoders


def mean_of(encoder: VideoEncoder | AudioEncoder, latents: Tensor) -> Tensor:
    with torch.no_grad():
        moments: Tensor = encoder(latents)
    return moments[:, :16]


def test_a_fresh_encoder_with_a_shortcut_is_linear() -> None:
    for encoder, shape in zip(fresh(), [(1, 16, 4, 32, 32), (1, 4, 32, 32)], strict=True):
        one, other = noise(*shape), noise(*shape, seed=2)
        nothing = mean_of(encoder, torch.zeros(shape))
        together = mean_of(encoder, 2 * one - 3 * other) - nothing
        apart = 2 * (mean_of(encoder, one) - nothing) - 3 * (mean_of(encoder, other) - nothing)
        assert apart.abs().max() > 0.1
        # Sums of float32 in another order.
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_every_frame_goes_through_the_shortcut() -> None:
    video, _ = fresh()
    window = noise(1, 16, 4, 32, 32)
    for frame in range(16):
        changed = window.clone()
        changed[:, frame] += 1
        assert (mean_of(video, changed) - mean_of(video, window)).abs().max() > 1e-2


def test_the_trunk_adds_to_the_shortcut() -> None:
    video, _ = fresh("live")
    window = noise(1, 16, 4, 32, 32)
    assert video.shortcut is not None
    with torch.no_grad():
        linear = video.shortcut(window.flatten(1, 2))
    assert (mean_of(video, window) - linear).abs().max() > 1e-2


def test_encoders_with_shortcuts_come_back_from_their_folder(tmp_path: Path) -> None:
    video, audio = fresh("live")
    save_modal_encoders(tmp_path, video, audio)
    loaded = load_modal_encoders(tmp_path)
    assert (loaded.video.config, loaded.audio.config) == (VIDEO, AUDIO)
    window = noise(1, 16, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.encode_video(window), video(window))


def test_without_a_shortcut_an_architecture_is_as_before_there_were_any(tmp_path: Path) -> None:
    encoders = random_modal_encoders(0)
    for encoder in (encoders.video, encoders.audio):
        assert encoder.shortcut is None
        assert "shortcut_kernel" not in architecture_of(encoder)
    save_modal_encoders(tmp_path, encoders.video, encoders.audio)
    assert "shortcut" not in (tmp_path / CONFIG_FILE).read_text()
    assert load_modal_encoders(tmp_path).identity == encoders.identity


def test_a_config_that_names_no_shortcut_or_0_is_the_same(tmp_path: Path) -> None:
    encoders = random_modal_encoders(0)
    save_modal_encoders(tmp_path, encoders.video, encoders.audio)
    tables = json.loads((tmp_path / CONFIG_FILE).read_text())
    tables["video_encoder"]["shortcut_kernel"] = 0
    (tmp_path / CONFIG_FILE).write_text(json.dumps(tables))
    assert load_modal_encoders(tmp_path).identity == encoders.identity


@pytest.mark.parametrize("kernel", [1, 3, -2, True])
def test_kernels_that_do_not_lie_evenly_are_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match="shortcut_kernel is"):
        replace(VIDEO, shortcut_kernel=kernel)
