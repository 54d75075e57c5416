"""Griffin-Lim: the waveform is as long, as loud and as high as its mel says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from latents.mel import DECIBELS_PER_NEPER, MelSpec, mel_basis, mel_spec, waveform_to_log_mel
from latents.models.vocoder import griffin_lim, mel_to_magnitude

HIFIGAN = mel_spec("hifigan22k")
SPECS = pytest.mark.parametrize(
    "spec",
    [mel_spec(name) for name in ("hifigan22k", "audioldm16k", "paper44k")],
    ids=lambda spec: spec.name,
)


def chord(sample_rate: int, seconds: float = 0.8) -> Tensor:
    """Harmonics of 220 Hz that fade, over faint noise."""
    generator = np.random.default_rng(0)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tones = [np.sin(2 * np.pi * 220 * n * time) / n for n in range(1, 8)]
    sound = 0.2 * sum(tones) * np.exp(-2 * time) + generator.normal(0, 1e-3, len(time))
    return torch.from_numpy(sound.astype(np.float32))


def spectral_convergence(waveform: Tensor, log_mel: Tensor, spec: MelSpec) -> float:
    """Relative distance of a waveform's mel magnitudes from the wanted ones."""
    wanted = log_mel.exp()
    return float((waveform_to_log_mel(waveform, spec).exp() - wanted).norm() / wanted.norm())


@SPECS
@pytest.mark.parametrize("num_columns", [1, 2, 137])
def test_length_is_columns_times_hop(spec: MelSpec, num_columns: int) -> None:
    log_mel = torch.zeros(spec.num_mels, num_columns)

    assert griffin_lim(log_mel, spec, num_iterations=1).shape == (num_columns * spec.hop_length,)


@SPECS
def test_a_sine_keeps_its_frequency(spec: MelSpec) -> None:
    time = torch.arange(spec.sample_rate) / spec.sample_rate
    log_mel = waveform_to_log_mel(0.5 * torch.sin(2 * torch.pi * 1000 * time), spec)

    waveform = griffin_lim(log_mel, spec)

    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    peak = int(spectrum.argmax()) * spec.sample_rate / len(waveform)
    # A mel bin near 1 kHz is 37 to 75 Hz wide: that is all the mel knows of the frequency.
    assert peak == pytest.approx(1000, abs=75)


@SPECS
def test_the_mel_of_the_waveform_is_the_mel_it_was_made_from(spec: MelSpec) -> None:
    log_mel = waveform_to_log_mel(chord(spec.sample_rate), spec)

    found = waveform_to_log_mel(griffin_lim(log_mel, spec), spec)

    # Deep valleys between harmonics fill up, as no waveform has just these magnitudes: 0.8 to
    # 2.6 dB here, 0.6 to 1.2 dB on recorded speech and music.
    assert ((found - log_mel) * DECIBELS_PER_NEPER).abs().mean() < 3


def test_spectral_convergence_falls_with_iterations() -> None:
    log_mel = waveform_to_log_mel(chord(22050), HIFIGAN)

    errors = [
        spectral_convergence(griffin_lim(log_mel, HIFIGAN, num_iterations=n), log_mel, HIFIGAN)
        for n in (1, 4, 16, 64)
    ]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_a_click_stays_where_it_is() -> None:
    click = torch.zeros(22050)
    click[40 * 256 + 200] = 1

    waveform = griffin_lim(waveform_to_log_mel(click, HIFIGAN), HIFIGAN)

    # Half a hop late or early is the mistake this is here to catch.
    energy = waveform.square()
    centre = float((energy * torch.arange(len(energy))).sum() / energy.sum())
    assert centre == pytest.approx(40 * 256 + 200, abs=64)


@SPECS
def test_silence_stays_inaudible(spec: MelSpec) -> None:
    log_mel = waveform_to_log_mel(torch.zeros(spec.sample_rate), spec)

    waveform = griffin_lim(log_mel, spec)

    assert torch.isfinite(waveform).all()
    assert waveform.abs().max() < 1e-4  # -80 dB of full scale


def test_the_same_mel_gives_the_same_waveform_whatever_the_random_state() -> None:
    log_mel = waveform_to_log_mel(chord(22050), HIFIGAN)
    first = griffin_lim(log_mel, HIFIGAN, num_iterations=4)
    torch.rand(7)

    assert torch.equal(griffin_lim(log_mel, HIFIGAN, num_iterations=4), first)


def test_magnitudes_are_non_negative_and_have_the_wanted_mel() -> None:
    mel = waveform_to_log_mel(chord(22050), HIFIGAN).exp()

    magnitude = mel_to_magnitude(mel, HIFIGAN)

    assert magnitude.shape == (513, mel.shape[1])
    assert magnitude.min() >= 0
    error = (mel_basis(HIFIGAN) @ magnitude - mel).norm() / mel.norm()
    assert error < 0.01  # 30 updates; the pseudo-inverse cut at zero alone leaves ten times more


def test_magnitudes_above_the_highest_filter_are_zero() -> None:
    magnitude = mel_to_magnitude(torch.ones(80, 3), HIFIGAN)

    assert magnitude[8000 * 1024 // 22050 + 1 :].unique().tolist() == [0]


def test_a_mel_of_another_specification_is_refused() -> None:
    with pytest.raises(ValueError, match="'hifigan22k' must be \\(80, column\\)"):
        griffin_lim(torch.zeros(64, 160), HIFIGAN)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="num_iterations is 0"):
        griffin_lim(torch.zeros(80, 137), HIFIGAN, num_iterations=0)
