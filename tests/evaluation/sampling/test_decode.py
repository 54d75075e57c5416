"""From latents to pictures and sound: the scale, the length, the mel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.sampling.decode import Sound, WindowDecoder, playable
from latents.clip import ClipSpec, WindowSpec
from latents.mel import MelSpec, mel_spec
from latents.models.signal_decoder import SignalDecoder
from pipeline.job import LatentScale
from pipeline.recorded import Recorded
from pipeline.settings import DecodeSettings

MEL = mel_spec("hifigan22k")
RECORDED = Recorded(
    clip=ClipSpec(),
    window=WindowSpec(),
    mel=MEL,
    decode=DecodeSettings(),
    weights="",
    clip_recipes={},
)


class DecodesToLevels:
    """A signal decoder that gives its latent's mean everywhere."""

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.mean() + torch.arange(16.0)[None, :, None, None, None].expand(1, 16, 4, 2, 2)

    def decode_audio(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.mean().expand(1, 4, 32, 32)


class RampOfLatent:
    """A KL-VAE whose picture has its latent's value in row 0 and one more in each further row."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        rows = latents[:, :1, :1, :1] + torch.arange(latents.shape[2])[None, None, :, None]
        return rows.expand(-1, 3, -1, latents.shape[3]).round().to(torch.uint8)


class Listener:
    """A vocoder that keeps the mel and gives twos."""

    def __init__(self, mel: MelSpec = MEL) -> None:
        self._hop = mel.hop_length
        self.log_mel = torch.empty(0)

    def __call__(self, log_mel: torch.Tensor) -> torch.Tensor:
        self.log_mel = log_mel
        return torch.full((log_mel.shape[1] * self._hop,), 2.0)


def decoder(
    vocode: Listener, *, scale: LatentScale, recorded: Recorded = RECORDED
) -> WindowDecoder:
    signal_decoder: SignalDecoder = DecodesToLevels()  # type: ignore[assignment]  # a fake
    return WindowDecoder(
        signal_decoder=signal_decoder,
        kl_vae=RampOfLatent(),
        vocode=vocode,
        scale=scale,
        recorded=recorded,
        device="cpu",
    )


def test_latents_are_unscaled_before_the_kl_vae() -> None:
    decode = decoder(Listener(), scale=LatentScale(factor=0.5, shift=7.0))

    frames = decode.frames(torch.full((16, 16, 16), 10.0))

    # (10 + frame) / 0.5 + 7, and a ramp from the first row down.
    assert frames.shape == (16, 3, 2, 2)
    assert frames[:, 0, 0, 0].tolist() == [27 + 2 * frame for frame in range(16)]
    assert frames[3, 1].tolist() == [[33, 33], [34, 34]]


@pytest.mark.parametrize("name", ["hifigan22k", "audioldm16k", "paper44k"])
def test_sound_lasts_as_long_as_its_window(name: str) -> None:
    mel = mel_spec(name)
    listener = Listener(mel)
    recorded = replace(RECORDED, mel=mel)
    decode = decoder(listener, scale=LatentScale(factor=1.0, shift=0.0), recorded=recorded)

    sound = decode.sound(torch.zeros(16, 8, 8))

    assert sound.sample_rate == mel.sample_rate
    assert sound.waveform.shape == (1, mel.sample_rate * 16 // 10)
    assert sound.waveform.dtype == np.float32
    assert sound.waveform.max() == 1  # the vocoder's twos are beyond full scale
    assert listener.log_mel.shape == (mel.num_mels, -(-sound.waveform.shape[1] // mel.hop_length))


def test_the_first_row_of_the_image_is_the_lowest_mel_bin_and_the_last_column_is_repeated() -> None:
    listener = Listener()
    decode = decoder(listener, scale=LatentScale(factor=1.0, shift=0.0))

    decode.sound(torch.full((16, 8, 8), 100.0))

    # Levels 100 ... 131 of 255, over 100 dB from -80: natural logarithms of magnitudes.
    decibels = listener.log_mel[:, 0] * 20 / np.log(10)
    assert decibels[0] == pytest.approx(100 / 255 * 100 - 80, abs=0.2)
    assert decibels[-1] == pytest.approx(131 / 255 * 100 - 80, abs=0.2)
    assert listener.log_mel.shape[1] == 138
    assert torch.equal(listener.log_mel[:, 137], listener.log_mel[:, 136])


def test_a_rate_that_aac_has_not_becomes_44100_hz() -> None:
    stereo = np.ones((2, 11026), np.float32)

    same = playable(Sound(waveform=stereo, sample_rate=22050))
    other = playable(Sound(waveform=stereo, sample_rate=22052))

    assert (same.sample_rate, same.waveform.shape) == (22050, (2, 11026))
    assert (other.sample_rate, other.waveform.shape) == (44100, (2, 22050))


def test_more_than_two_channels_are_mixed_down() -> None:
    waveform = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)

    mono = playable(Sound(waveform=waveform, sample_rate=44100)).waveform

    np.testing.assert_allclose(mono, [[0.3, 0.4]], rtol=1e-6)
