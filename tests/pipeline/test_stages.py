"""The encode stage: what it encodes, how often, and what it refuses."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from latents.clip import Clip, ClipKey, ClipSpec, WindowSpec
from latents.errors import NonFiniteLatentError
from latents.fields import Level
from latents.mel import mel_spec
from pipeline.stages import EncodeClip, StoppedError, channel_sums

SIZE = 64


class FakeEncoder:
    """Moments that name the image they came from: its mean brightness."""

    def __init__(self, scale: float = 1.0) -> None:
        self.num_images = 0
        self._scale = scale

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.num_images += len(images)
        brightness = images.float().mean(dim=(1, 2, 3)) / 255 * self._scale
        return brightness[:, None, None, None].expand(-1, 8, 2, 2).clone()


def clip(num_frames: int, *, sound: tuple[int, int] | None = None) -> Clip:
    rate = 22050
    first, stop = sound or (0, num_frames)
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    tone = np.sin(np.arange(num_frames * rate // 10) * 0.1).astype(np.float32)
    return Clip(
        key=ClipKey(source_digest="ab" * 32, start_frame=0, fps=10),
        source="a.mp4",
        segment=0,
        frames=np.broadcast_to(frames, (num_frames, 3, SIZE, SIZE)).copy(),
        waveform=np.stack([tone, tone]),
        sample_rate=rate,
        sound_first_frame=first,
        sound_stop_frame=stop,
    )


def stage(encoder: FakeEncoder, *, stride: int, levels: tuple[Level, ...] = ("kl",)) -> EncodeClip:
    return EncodeClip(
        encoder=encoder,
        clip_spec=ClipSpec(size=SIZE),
        window_spec=WindowSpec(stride=stride),
        mel=mel_spec("hifigan22k"),
        levels=levels,
        device="cpu",
    )


def test_at_stride_one_a_ten_second_clip_costs_at_most_2_2_images_a_window() -> None:
    # 100 frames, each encoded once, and 85 mel images for 85 windows: 185 / 85 = 2.18, not 17.
    encoder = FakeEncoder()
    encoded = stage(encoder, stride=1)(clip(100))
    assert encoded.grid.num_windows == 85
    assert encoder.num_images == encoded.num_kl_images == 185
    assert encoder.num_images / encoded.grid.num_windows <= 2.2


def test_frames_are_encoded_in_order_and_once() -> None:
    encoded = stage(FakeEncoder(), stride=16)(clip(20))
    brightness = encoded.tensors["kl.video"][:, 0, 0, 0].astype(np.float64) * 255
    np.testing.assert_allclose(brightness, np.arange(20), atol=0.02)  # float16 of 19 / 255


def test_windows_are_those_beside_which_there_is_sound() -> None:
    encoded = stage(FakeEncoder(), stride=4)(clip(40, sound=(3, 30)))
    assert list(encoded.grid.starts()) == [4, 8, 12]
    assert encoded.tensors["kl.audio"].shape == (3, 8, 2, 2)
    assert encoded.tensors["kl.video"].shape == (40, 8, 2, 2)


def test_each_window_has_the_mel_image_of_its_own_sound() -> None:
    silent_then_loud = clip(40)
    silent_then_loud.waveform[:, : 22050 * 2] = 0
    encoded = stage(FakeEncoder(), stride=16)(silent_then_loud)
    first, second = encoded.tensors["kl.audio"][:, 0, 0, 0]
    assert first == 0.0
    assert second > 0.05


def test_the_clip_level_keeps_pictures_and_sound_as_they_are() -> None:
    given = clip(20)
    encoded = stage(FakeEncoder(), stride=4, levels=("clip", "kl"))(given)
    assert sorted(encoded.tensors) == ["clip.audio", "clip.video", "kl.audio", "kl.video"]
    np.testing.assert_array_equal(encoded.tensors["clip.video"], given.frames)
    np.testing.assert_array_equal(encoded.tensors["clip.audio"], given.waveform)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_moment_too_large_for_float16_is_refused_not_stored() -> None:
    with pytest.raises(NonFiniteLatentError, match=r"a\.mp4: .*float16"):
        stage(FakeEncoder(scale=1e7), stride=4)(clip(20))


def test_a_stage_told_to_stop_does_not_finish_its_clip() -> None:
    stop = threading.Event()
    stop.set()
    encode = EncodeClip(
        encoder=FakeEncoder(),
        clip_spec=ClipSpec(size=SIZE),
        window_spec=WindowSpec(),
        mel=mel_spec("hifigan22k"),
        levels=("kl",),
        device="cpu",
        stop=stop,
    )
    with pytest.raises(StoppedError):
        encode(clip(20))


def test_channel_sums_are_those_of_the_mixture_of_posteriors() -> None:
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(5, 8, 2, 2)).astype(np.float16)
    sums = channel_sums(moments)
    mean, logvar = moments[:, :4].astype(np.float64), moments[:, 4:].astype(np.float64)
    assert sums.count == 5 * 2 * 2
    np.testing.assert_allclose(sums.mean_sum, mean.sum((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(
        sums.square_sum, (mean**2 + np.exp(logvar)).sum((0, 2, 3)), rtol=1e-12
    )
