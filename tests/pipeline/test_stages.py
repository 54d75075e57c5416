"""The encode stage: what it encodes, how often, and what it refuses."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from latents.clip import Clip, ClipKey, ClipSpec, WindowSpec
from latents.errors import NonFiniteLatentError, OutOfMemoryError, TooShortError
from latents.fields import LEVELS
from pipeline.encode_stage import EncodeClip, StoppedError
from pipeline.encoded import channel_sums
from pipeline.job import ClipTensors, LatentScale, decoded_tensors
from pipeline.settings import IngestSettings, RunSettings

SIZE = 64
SCALE = LatentScale(factor=2.0, shift=0.25)


class FakeEncoder:
    """Moments that name the image they came from: its mean brightness."""

    def __init__(self, scale: float = 1.0) -> None:
        self.num_images = 0
        self._scale = scale

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.num_images += len(images)
        brightness = images.float().mean(dim=(1, 2, 3)) / 255 * self._scale
        return brightness[:, None, None, None].expand(-1, 8, 2, 2).clone()


class FullEncoder(FakeEncoder):
    """An encoder on a GPU that has room for so many calls."""

    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self._num_left = num_calls
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        if self._num_left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self._num_left -= 1
        return super().encode(images)


class FakeModalEncoder:
    """Moments that name what they came from; and what was asked."""

    def __init__(self) -> None:
        self.num_windows = 0
        self.read: list[torch.Tensor] = []

    def encode_video(self, latents: torch.Tensor) -> torch.Tensor:
        self.num_windows += len(latents)
        self.read.append(latents)
        return latents[:, 0, :1, :1, :1].expand(-1, 32, 1, 1).clone()

    def encode_audio(self, latents: torch.Tensor) -> torch.Tensor:
        self.read.append(latents)
        return latents[:, :1, :1, :1].expand(-1, 32, 1, 1).clone()


def clip(
    num_frames: int,
    *,
    sound: tuple[int, int] | None = None,
    fields: tuple[str, ...] = LEVELS["kl"],
) -> ClipTensors:
    rate = 22050
    first, stop = sound or (0, num_frames)
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    tone = np.sin(np.arange(num_frames * rate // 10) * 0.1).astype(np.float32)
    decoded = Clip(
        key=ClipKey(source_digest="ab" * 32, start_frame=0, fps=10),
        source="a.mp4",
        segment=0,
        frames=np.broadcast_to(frames, (num_frames, 3, SIZE, SIZE)).copy(),
        waveform=np.stack([tone, tone]),
        sample_rate=rate,
        sound_first_frame=first,
        sound_stop_frame=stop,
    )
    return decoded_tensors(decoded, fields)


def stage(
    kl_vae: FakeEncoder | None,
    *,
    stride: int = 4,
    modal: FakeModalEncoder | None = None,
    stop: threading.Event | None = None,
    device: str = "cpu",
    batch_images: int = 16,
) -> EncodeClip:
    return EncodeClip(
        kl_vae=kl_vae,
        modal=modal,
        latent_scale=SCALE,
        settings=IngestSettings(
            clip=ClipSpec(size=SIZE),
            window=WindowSpec(stride=stride),
            run=RunSettings(batch_images=batch_images),
        ),
        device=device,
        stop=stop,
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
    silent_then_loud.tensors["clip.audio"][:, : 22050 * 2] = 0
    encoded = stage(FakeEncoder(), stride=16)(silent_then_loud)
    first, second = encoded.tensors["kl.audio"][:, 0, 0, 0]
    assert first == 0.0
    assert second > 0.05


def test_the_clip_level_keeps_pictures_and_sound_as_they_are() -> None:
    given = clip(20, fields=(*LEVELS["clip"], *LEVELS["kl"]))
    encoded = stage(FakeEncoder(), stride=4)(given)
    assert sorted(encoded.tensors) == ["clip.audio", "clip.video", "kl.audio", "kl.video"]
    for field in LEVELS["clip"]:
        np.testing.assert_array_equal(encoded.tensors[field], given.tensors[field])
        assert field not in encoded.channel_sums


def test_only_the_fields_asked_for_are_made() -> None:
    encoder = FakeEncoder()
    encoded = stage(encoder, stride=4)(clip(20, fields=("kl.audio",)))
    assert (list(encoded.tensors), list(encoded.channel_sums)) == (["kl.audio"], ["kl.audio"])
    assert encoder.num_images == encoded.num_kl_images == 2


def test_a_parent_that_is_not_at_hand_is_made_and_not_kept() -> None:
    encoded = stage(FakeEncoder(), modal=FakeModalEncoder())(clip(20, fields=("perceptual.video",)))
    assert list(encoded.tensors) == ["perceptual.video"]
    assert encoded.num_kl_images == 20


def test_the_perceptual_level_is_made_from_kl_latents_alone() -> None:
    moments = stage(FakeEncoder(), stride=4)(clip(20)).tensors
    kept = replace(clip(20, fields=LEVELS["perceptual"]), tensors=moments)
    modal = FakeModalEncoder()
    encoded = stage(None, stride=4, modal=modal)(kept)
    assert (encoded.num_kl_images, modal.num_windows) == (0, 2)
    assert [encoded.tensors[field].shape for field in LEVELS["perceptual"]] == [(2, 32, 1, 1)] * 2


def test_modal_encoders_read_the_scaled_means_of_each_window() -> None:
    moments = stage(FakeEncoder(), stride=4)(clip(20)).tensors
    kept = replace(clip(20, fields=LEVELS["perceptual"]), tensors=moments)
    modal = FakeModalEncoder()
    stage(None, stride=4, modal=modal)(kept)
    video, audio = modal.read
    means = (torch.from_numpy(moments["kl.video"])[:, :4].float() - SCALE.shift) * SCALE.factor
    torch.testing.assert_close(video, torch.stack([means[0:16], means[4:20]]), rtol=0, atol=0)
    means = (torch.from_numpy(moments["kl.audio"])[:, :4].float() - SCALE.shift) * SCALE.factor
    torch.testing.assert_close(audio, means, rtol=0, atol=0)


def test_a_kept_clip_too_short_for_longer_windows_is_refused_and_stops_nothing() -> None:
    with pytest.raises(TooShortError, match=r"a\.mp4: .* 12 frames .* window is 16 frames"):
        stage(FakeEncoder())(clip(20, sound=(4, 16)))


def test_pictures_need_no_window() -> None:
    encoded = stage(FakeEncoder())(clip(20, sound=(4, 16), fields=("kl.video",)))
    assert len(encoded.tensors["kl.video"]) == 20


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_moment_too_large_for_float16_is_refused_not_stored() -> None:
    with pytest.raises(NonFiniteLatentError, match=r"a\.mp4: .*float16"):
        stage(FakeEncoder(scale=1e7), stride=4)(clip(20))


def test_a_stage_told_to_stop_does_not_finish_its_clip() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        stage(FakeEncoder(), stop=stop)(clip(20))


def test_a_gpu_that_runs_out_of_memory_stops_the_job_and_names_the_setting() -> None:
    full = stage(FullEncoder(num_calls=1), device="cuda", batch_images=8)
    with pytest.raises(OutOfMemoryError, match=r"cuda: .* 8 pictures .*run\.batch_images=4"):
        full(clip(100))


def test_where_one_picture_is_too_much_smaller_ones_are_advised() -> None:
    full = stage(FullEncoder(num_calls=0), device="cuda", batch_images=1)
    with pytest.raises(OutOfMemoryError, match=r"smaller pictures \(clip\.size\)"):
        full(clip(20))


def test_both_shapes_of_pictures_are_probed() -> None:
    encoder = FullEncoder(num_calls=2)
    stage(encoder, device="cuda").probe()
    assert encoder.shapes == [(1, 3, SIZE, SIZE), (1, 3, 256, 256)]
    with pytest.raises(OutOfMemoryError, match=r"run\.batch_images=8"):
        stage(FullEncoder(num_calls=1), device="cuda").probe()


def test_a_gpu_gets_several_batches_at_a_time_so_that_copies_overlap() -> None:
    encoder = FullEncoder(num_calls=9)
    stage(encoder, device="cuda", batch_images=4)(clip(40, fields=("kl.video",)))
    assert [shape[0] for shape in encoder.shapes] == [32, 8]


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
