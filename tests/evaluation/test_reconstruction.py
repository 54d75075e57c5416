from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from evaluation.reconstruction import (
    covering_windows,
    mel_error_db,
    psnr_db,
    reconstruct_frames,
    reconstruct_sound,
    stitch_log_mels,
)
from latents.clip import ClipSpec, WindowGrid
from latents.mel import DECIBELS_PER_NEPER, mel_spec, waveform_to_log_mel

MEL = mel_spec("hifigan22k")
CLIP = ClipSpec()


class MeansAsColours:
    """Decodes a latent (image, channel, h, w) to its first channel, as large as itself."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :1].expand(-1, 3, -1, -1).to(torch.uint8)


def grid(num_windows: int, *, stride: int = 4, first_frame: int = 0) -> WindowGrid:
    return WindowGrid(frames=16, stride=stride, first_frame=first_frame, num_windows=num_windows)


def grey(level: int) -> torch.Tensor:
    return torch.full((3, 256, 256), level, dtype=torch.uint8)


def decibels(level: int) -> float:
    """What a grey level of a mel image stands for."""
    return level / 255 * 100 - 80


def test_psnr_of_pictures_one_level_apart() -> None:
    reference = np.full((2, 3, 8, 8), 100, np.uint8)

    assert psnr_db(reference, reference + np.uint8(1)) == pytest.approx(20 * math.log10(255))


def test_psnr_is_over_all_pixels_and_not_a_mean_of_pictures() -> None:
    reference = np.zeros((2, 3, 8, 8), np.uint8)
    reconstruction = reference.copy()
    reconstruction[1] = 10

    assert psnr_db(reference, reconstruction) == pytest.approx(10 * math.log10(255**2 / 50))


def test_psnr_of_equal_pictures_is_finite() -> None:
    picture = np.full((1, 3, 8, 8), 7, np.uint8)

    assert psnr_db(picture, picture) == 100.0


def test_psnr_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        psnr_db(np.zeros((1, 3, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.uint8))


def test_mel_error_is_in_decibels() -> None:
    reference = torch.zeros(80, 10)

    assert mel_error_db(reference, reference - 3 / DECIBELS_PER_NEPER) == pytest.approx(3, rel=1e-5)


def test_mel_error_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        mel_error_db(torch.zeros(80, 10), torch.zeros(80, 9))


def test_frames_are_decoded_from_the_means_alone() -> None:
    moments = np.zeros((20, 8, 4, 4), np.float16)
    moments[:, 0] = np.arange(20)[:, None, None]
    moments[:, 4:] = 99

    frames = reconstruct_frames(MeansAsColours(), moments)

    assert frames.shape == (20, 3, 4, 4)
    assert frames[:, 2, 1, 1].tolist() == list(range(20))


def test_threads_change_no_byte() -> None:
    moments = np.random.default_rng(0).uniform(0, 255, (37, 8, 2, 2)).astype(np.float16)

    one = reconstruct_frames(MeansAsColours(), moments, num_threads=1)
    three = reconstruct_frames(MeansAsColours(), moments, num_threads=3)

    assert np.array_equal(one, three)


@pytest.mark.parametrize(
    ("windows", "stop_frame", "wanted"),
    [
        (grid(5), 32, (0, 4)),  # 0..16, 16..32: side by side
        (grid(7), 40, (0, 4, 6)),  # and 24..40 to reach the end
        (grid(7), 39, (0, 4, 5)),  # 20..36 is the last that ends by 39
        (grid(3, stride=16), 48, (0, 1, 2)),
        (grid(3, stride=16), 47, (0, 1)),
        (grid(2, first_frame=8), 24, (0,)),
        (grid(2), 15, ()),
    ],
)
def test_few_windows_cover_a_span(
    windows: WindowGrid, stop_frame: int, wanted: tuple[int, ...]
) -> None:
    assert covering_windows(windows, stop_frame) == wanted


def test_a_stitched_mel_has_the_length_of_the_span_and_not_of_its_windows() -> None:
    images = [grey(40 * number) for number in range(6)]
    log_mel = stitch_log_mels(
        images, [16 * number for number in range(6)], window_frames=16, clip_spec=CLIP, mel=MEL
    )

    # 9.6 s at 22050 Hz are 826 hops of 256 samples; six windows have 6 * 137 = 822.
    assert log_mel.shape == (80, 826)
    levels = (log_mel[0] * DECIBELS_PER_NEPER).tolist()
    changes = [index for index, (a, b) in enumerate(pairwise(levels), 1) if b != a]
    # Window k begins at sample 35280 k: the first hop whose middle is past it is its own.
    assert changes == [math.ceil(35280 * number / 256 - 0.5) for number in range(1, 6)]
    assert levels[0] == pytest.approx(decibels(0), abs=1e-4)
    assert levels[-1] == pytest.approx(decibels(200), abs=1e-4)


def test_where_windows_overlap_the_first_one_counts() -> None:
    log_mel = stitch_log_mels(
        [grey(0), grey(255)], [0, 8], window_frames=16, clip_spec=CLIP, mel=MEL
    )

    assert log_mel.shape[1] == 206  # 24 frames of 2205 samples
    loud = log_mel[0] * DECIBELS_PER_NEPER > 0
    assert int(loud.sum()) == 206 - 138  # window 0 ends at sample 35280, in hop 137


def test_sound_keeps_the_pitch_and_lies_where_it_is_put() -> None:
    seconds = torch.arange(11025) / MEL.sample_rate
    tone = 0.3 * torch.sin(2 * math.pi * 440 * seconds)

    sound = reconstruct_sound(
        waveform_to_log_mel(tone, MEL), MEL, first_sample=4410, num_samples=20000
    )

    assert (sound.dtype, sound.shape) == (np.float32, (1, 20000))
    assert not sound[:, :4410].any()
    assert not sound[:, 4410 + 43 * 256 :].any()
    spectrum = np.abs(np.fft.rfft(sound[0, 6000:14192]))
    # One mel bin at 440 Hz is 38 Hz wide: the mel does not say more of the pitch.
    assert np.argmax(spectrum) * MEL.sample_rate / 8192 == pytest.approx(440, abs=38)


def test_sound_is_cut_where_the_clip_ends() -> None:
    log_mel = torch.full((80, 40), -3.0)

    sound = reconstruct_sound(log_mel, MEL, first_sample=100, num_samples=5000)

    assert sound.shape == (1, 5000)
    assert np.abs(sound).max() <= 1
