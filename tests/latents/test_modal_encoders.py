"""The modal encoders are MM-LDM's, and code each window by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latents.models.encoder_blocks import draw_weights
from latents.models.frozen_modal_encoders import ModalEncoders
from latents.models.modal_encoder_config import (
    AUDIO_CONFIGS,
    VIDEO_CONFIGS,
    AudioEncoderConfig,
    ConfigName,
    VideoEncoderConfig,
)
from latents.models.modal_encoder_files import random_modal_encoders
from latents.models.modal_encoders import AudioEncoder, VideoEncoder


@pytest.fixture(scope="module")
def encoders() -> ModalEncoders:
    return random_modal_encoders(0)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def windows(count: int) -> Tensor:
    """KL latents of windows' pictures."""
    return noise(count, 16, 4, 32, 32)


def sounds(count: int) -> Tensor:
    """KL latents of windows' mel images."""
    return noise(count, 4, 32, 32)


def meta_encoders(name: ConfigName) -> tuple[VideoEncoder, AudioEncoder]:
    with torch.device("meta"):
        return VideoEncoder(VIDEO_CONFIGS[name]), AudioEncoder(AUDIO_CONFIGS[name])


def num_macs(encoder: nn.Module, *shape: int) -> dict[str, float]:
    """Multiply-accumulates of one window, by operation."""
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, *shape, device="meta"))
    return {str(op): flops / 2 for op, flops in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("name", ["full", "tiny"])
def test_latents_have_the_papers_shapes(name: ConfigName) -> None:
    video, audio = meta_encoders(name)
    assert video(torch.zeros(2, 16, 4, 32, 32, device="meta")).shape == (2, 2 * 16, 16, 16)
    assert audio(torch.zeros(2, 4, 32, 32, device="meta")).shape == (2, 2 * 16, 8, 8)


def test_full_encoders_have_as_many_weights_as_the_authors() -> None:
    video, audio = meta_encoders("full")
    # Counted on the authors' encoders without their condition pyramids, rounded to 0.1 M.
    assert sum(p.numel() for p in video.parameters()) == pytest.approx(28.4e6, abs=0.05e6)
    assert sum(p.numel() for p in audio.parameters()) == pytest.approx(101.5e6, abs=0.05e6)


def pyramid_macs() -> float:
    """The condition pyramid of the authors' encoders: 12 blocks from the latent's 16 channels.

    Each has two 3x3 convolutions, a 1x1 skip connection and a final 1x1 convolution.
    """
    channels = [320] * 4 + [640] * 3 + [1280] * 5
    sizes = [32] * 3 + [16] * 3 + [8] * 3 + [4] * 3
    return sum(
        (10 * 16 * width + 10 * width**2) * size**2
        for width, size in zip(channels, sizes, strict=True)
    )


def test_full_encoders_cost_as_much_as_the_authors() -> None:
    video, audio = meta_encoders("full")
    layers = ("aten.convolution", "aten.addmm", "aten.mm")  # without the products of attention
    of_video, of_audio = num_macs(video, 16, 4, 32, 32), num_macs(audio, 4, 32, 32)
    # Measured on the authors' encoders with their pyramids, rounded to 0.1 G.
    assert sum(of_video[op] for op in layers) + pyramid_macs() == pytest.approx(65.8e9, abs=0.05e9)
    assert sum(of_audio[op] for op in layers) + pyramid_macs() == pytest.approx(23.5e9, abs=0.05e9)


def test_tiny_encoders_are_cheap() -> None:
    video, audio = meta_encoders("tiny")
    of_video = sum(num_macs(video, 16, 4, 32, 32).values())
    of_audio = sum(num_macs(audio, 4, 32, 32).values())
    assert of_video == pytest.approx(20.9e6, rel=0.01)
    assert of_audio == pytest.approx(8.5e6, rel=0.01)
    assert of_video + of_audio <= 30e6


@pytest.mark.parametrize("frame", [0, 5, 10, 15])
def test_every_key_frame_matters(encoders: ModalEncoders, frame: int) -> None:
    latents = windows(1)
    before = encoders.encode_video(latents)
    latents[:, frame] += noise(4, 32, 32, seed=2)
    assert (encoders.encode_video(latents) - before).abs().max() > 1e-3


def test_other_frames_do_not_matter(encoders: ModalEncoders) -> None:
    latents = windows(1)
    before = encoders.encode_video(latents)
    others = [frame for frame in range(16) if frame not in (0, 5, 10, 15)]
    latents[:, others] = torch.nan
    assert torch.equal(encoders.encode_video(latents), before)


def test_all_frames_can_be_key_frames() -> None:
    encoder = VideoEncoder(
        VideoEncoderConfig(
            key_frames=tuple(range(16)), channels=4, attention_sizes=(16,), head_channels=4
        )
    ).eval()
    draw_weights(encoder, key="all frames", start="live")
    latents = windows(1)
    with torch.no_grad():
        before = encoder(latents)
        latents[:, 7] += noise(4, 32, 32, seed=2)
        assert (encoder(latents) - before).abs().max() > 1e-3


def test_moments_are_read_at_the_learned_query_frame() -> None:
    video = random_modal_encoders(0).video
    seen: list[Tensor] = []
    video.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    latents = windows(1)
    video(latents)
    # batch, channel, time, row, column: the query frame comes first, then the key frames.
    assert torch.equal(seen[0][0, :, 0], video.query_frame)
    assert torch.equal(seen[0][0, :, 4], latents[0, 15])
    features = noise(1, 8, 5, 16, 16)
    everywhere = video.mean_head.layers(features)
    assert torch.equal(video.mean_head(features), everywhere[:, :, 0])


def test_sound_is_read_beside_the_learned_content() -> None:
    audio = random_modal_encoders(0).audio
    seen: list[Tensor] = []
    audio.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    latents = sounds(1)
    audio(latents)
    assert torch.equal(seen[0][0, :, 0], torch.cat([latents[0], audio.content]))


def test_moments_are_mean_then_clamped_log_variance() -> None:
    encoders = random_modal_encoders(0)
    before = encoders.encode_video(windows(1))
    last = encoders.video.logvar_head.layers[-1]
    assert isinstance(last.bias, Tensor)
    last.bias[:8], last.bias[8:] = 1e3, -1e3
    after = encoders.encode_video(windows(1))
    assert torch.equal(after[:, :16], before[:, :16])
    assert torch.equal(after[:, 16:24], torch.full((1, 8, 16, 16), 20.0))
    assert torch.equal(after[:, 24:], torch.full((1, 8, 16, 16), -30.0))


def test_training_starts_with_unit_variance_and_a_mean_that_sees_the_input() -> None:
    encoders = random_modal_encoders(0, start="zero")
    of_video, of_audio = encoders.encode_video(windows(2)), encoders.encode_audio(sounds(2))
    assert of_video[:, 16:].count_nonzero() == 0
    assert of_audio[:, 16:].count_nonzero() == 0
    assert (of_video[0, :16] - of_video[1, :16]).std() > 0.05
    assert (of_audio[0, :16] - of_audio[1, :16]).std() > 0.05


def test_zero_is_also_how_torch_starts_them() -> None:
    encoder = AudioEncoder(AUDIO_CONFIGS["tiny"])
    assert encoder(sounds(2))[:, 16:].count_nonzero() == 0


def test_live_encoders_answer_every_input_in_every_channel(encoders: ModalEncoders) -> None:
    for moments in (encoders.encode_video(windows(4)), encoders.encode_audio(sounds(4))):
        across_windows = moments.std(dim=0).mean(dim=(1, 2))
        assert across_windows.min() > 1e-3  # several steps of float16 at values of 1
        assert moments.half().isfinite().all()


def test_windows_do_not_depend_on_their_neighbours(encoders: ModalEncoders) -> None:
    assert encoders.batch_size == 1
    pictures, sound = windows(3), sounds(3)
    one_by_one = torch.cat([encoders.encode_video(window[None]) for window in pictures])
    assert torch.equal(encoders.encode_video(pictures), one_by_one)
    assert torch.equal(encoders.encode_video(pictures.flip(0)).flip(0), one_by_one)
    one_by_one = torch.cat([encoders.encode_audio(image[None]) for image in sound])
    assert torch.equal(encoders.encode_audio(sound), one_by_one)
    assert torch.equal(encoders.encode_audio(sound.flip(0)).flip(0), one_by_one)


def test_in_larger_batches_the_last_one_is_filled_up(encoders: ModalEncoders) -> None:
    pairs = ModalEncoders(encoders.video, encoders.audio, batch_size=2)
    together = pairs.encode_audio(sounds(3))
    assert torch.equal(pairs.encode_audio(sounds(3)[:2]), together[:2])
    assert torch.equal(pairs.encode_audio(sounds(3)[2:]), together[2:])
    # Batches of one and of two may sum in another order.
    torch.testing.assert_close(together, encoders.encode_audio(sounds(3)), atol=1e-5, rtol=1e-4)


def test_memory_layout_does_not_matter(encoders: ModalEncoders) -> None:
    clip = noise(20, 4, 32, 32)
    views = clip.unfold(0, 16, 2).movedim(-1, 1)  # overlapping windows of one clip, not copied
    assert torch.equal(encoders.encode_video(views), encoders.encode_video(views.contiguous()))
    images = sounds(2)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(encoders.encode_audio(channels_last), encoders.encode_audio(images))


def test_float16_latents_are_read_as_their_values(encoders: ModalEncoders) -> None:
    half = sounds(1).half()
    moments = encoders.encode_audio(half)
    assert moments.dtype == torch.float32
    assert torch.equal(moments, encoders.encode_audio(half.float()))


def test_bf16_is_close_to_fp32(encoders: ModalEncoders) -> None:
    rough = random_modal_encoders(0)
    rough = ModalEncoders(rough.video, rough.audio, precision="bf16")
    for exact, coarse in (
        (encoders.encode_video(windows(1)), rough.encode_video(windows(1))),
        (encoders.encode_audio(sounds(1)), rough.encode_audio(sounds(1))),
    ):
        # bfloat16 has 8 bits of mantissa; a few per cent of the standard deviation remain.
        assert coarse.dtype == torch.float32
        assert 0 < (coarse - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize(
    "latents",
    [
        torch.zeros(16, 4, 32, 32),
        torch.zeros(0, 16, 4, 32, 32),
        torch.zeros(1, 4, 4, 32, 32),
        torch.zeros(1, 16, 8, 32, 32),
        torch.zeros(1, 16, 4, 32, 32, dtype=torch.uint8),
    ],
    ids=["no batch", "empty", "key frames alone", "moments", "integers"],
)
def test_other_latents_are_refused(encoders: ModalEncoders, latents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"latents must be floating point \(batch, 16, 4, 32, 32"):
        encoders.encode_video(latents)


def test_other_sound_is_refused(encoders: ModalEncoders) -> None:
    with pytest.raises(ValueError, match=r"\(batch, 4, 32, 32\), got torch.float32 \(1, 8, 32, 32"):
        encoders.encode_audio(torch.zeros(1, 8, 32, 32))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key_frames": (0, 16)}, "key_frames"),
        ({"key_frames": (5, 0)}, "key_frames"),
        ({"key_frames": ()}, "key_frames"),
        ({"channels": 0}, "channels"),
        ({"channels": 320.0}, "channels"),
        ({"channels": 100}, "32 groups"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention_sizes": (8,)}, "attention_sizes"),
        ({"head_channels": 48}, "heads of 48"),
        ({"in_size": 33}, "in_size"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VideoEncoderConfig(**changes)


def test_an_audio_architecture_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_sizes"):
        AudioEncoderConfig(attention_sizes=(4,))


@pytest.mark.parametrize("seed", [1, 2**32, -1])
def test_weights_are_a_function_of_the_whole_seed(encoders: ModalEncoders, seed: int) -> None:
    torch.rand(1)  # the global generator has no part in it
    assert random_modal_encoders(0).identity == encoders.identity
    assert random_modal_encoders(seed).identity != encoders.identity


def test_drawing_weights_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    random_modal_encoders(0)
    assert torch.equal(torch.random.get_rng_state(), before)
