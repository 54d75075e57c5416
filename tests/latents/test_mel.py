"""The mel against librosa, the picture against its inverse, and what each specification means."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from math import floor

import librosa
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latents.errors import ConfigError
from latents.mel import (
    DECIBELS_PER_NEPER,
    MelSpec,
    downmix,
    image_to_log_mel,
    log_mel_to_image,
    mel_spec,
    num_columns,
    resample,
    waveform_to_log_mel,
    window_image,
    window_images,
)

HIFIGAN = mel_spec("hifigan22k")
AUDIOLDM = mel_spec("audioldm16k")
PAPER = mel_spec("paper44k")
SPECS = pytest.mark.parametrize("spec", [HIFIGAN, AUDIOLDM, PAPER], ids=lambda spec: spec.name)

GREY_LEVEL_DB = 100 / 255


def noise(num_samples: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).normal(0, 0.1, num_samples)
    return torch.from_numpy(values.astype(np.float32))


def sine(frequency: float, sample_rate: int, seconds: float = 1.6) -> Tensor:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return torch.from_numpy((0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32))


def uniform_mel(num_mels: int, num_columns: int) -> Tensor:
    """A log mel spread evenly over the picture's range."""
    levels_db = np.random.default_rng(0).uniform(-80, 20, (num_mels, num_columns))
    return torch.from_numpy(levels_db.astype(np.float32)) / DECIBELS_PER_NEPER


def error_db(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted) * DECIBELS_PER_NEPER


class TestSpec:
    def test_hifigan22k_is_the_mel_of_hifigan_v1(self) -> None:
        assert HIFIGAN.canonical == {
            "sample_rate": 22050,
            "n_fft": 1024,
            "win_length": 1024,
            "hop_length": 256,
            "num_mels": 80,
            "fmin": 0,
            "fmax": 8000,
            "basis_sample_rate": 22050,
            "log_floor_db": -100,
            "floor_db": -80,
            "ceiling_db": 20,
            "image_size": 256,
            "rounding": "round",
            "resize": "bicubic",
        }

    def test_audioldm16k_differs_in_rate_hop_and_bins(self) -> None:
        assert AUDIOLDM.canonical == HIFIGAN.canonical | {
            "sample_rate": 16000,
            "basis_sample_rate": 16000,
            "hop_length": 160,
            "num_mels": 64,
        }

    def test_paper44k_reads_44100_hz_through_the_filters_of_22050_and_truncates(self) -> None:
        assert PAPER.canonical == HIFIGAN.canonical | {
            "sample_rate": 44100,
            "rounding": "truncate",
        }

    def test_the_name_is_no_part_of_what_the_mel_is(self) -> None:
        assert replace(HIFIGAN, name="mine").canonical == HIFIGAN.canonical

    @SPECS
    def test_canonical_survives_json(self, spec: MelSpec) -> None:
        assert json.loads(json.dumps(spec.canonical)) == spec.canonical
        assert {type(value) for value in spec.canonical.values()} == {int, str}

    def test_an_unknown_name_is_refused_with_the_nearest_known_one(self) -> None:
        with pytest.raises(ConfigError, match="'hifigan24k'; did you mean 'hifigan22k'"):
            mel_spec("hifigan24k")

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"sample_rate": 0}, "mel.sample_rate is 0"),
            ({"num_mels": 0}, "mel.num_mels is 0"),
            ({"hop_length": 255}, "mel.hop_length 255; both must be even"),
            ({"hop_length": 600}, "mel.win_length is 1024"),
            ({"win_length": 2048}, "mel.win_length is 2048"),
            ({"fmax": 11026}, "fmax <= 11025"),
            ({"fmin": 8000}, "0 <= fmin < fmax"),
            ({"floor_db": -101}, "mel.floor_db is -101"),
            ({"ceiling_db": -80}, "below ceiling_db"),
            ({"rounding": "ceil"}, "mel.rounding is 'ceil'"),
            ({"resize": "lanczos"}, "mel.resize is 'lanczos'"),
        ],
    )
    def test_a_field_out_of_its_range_is_refused(
        self, changes: dict[str, object], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=complaint):
            replace(HIFIGAN, **changes)  # type: ignore[arg-type]  # wrong on purpose


class TestWaveform:
    def test_downmix_is_the_mean_of_the_channels(self) -> None:
        stereo = torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.5, -0.5]])

        assert downmix(stereo).tolist() == [0.5, 0.5, -0.75]

    def test_downmix_refuses_a_waveform_without_channels(self) -> None:
        with pytest.raises(ValueError, match="must be \\(channel, sample\\)"):
            downmix(torch.zeros(10))

    def test_an_equal_rate_changes_nothing(self) -> None:
        waveform = noise(100)

        assert torch.equal(resample(waveform, 22050, 22050), waveform)

    @pytest.mark.parametrize(
        ("num_samples", "from_rate", "to_rate"),
        [
            (0, 44100, 22050),
            (1, 44100, 22050),
            (441, 44100, 22050),
            (76800, 48000, 22050),
            (70560, 44100, 16000),
            (12800, 8000, 22050),
            (70489, 44056, 22050),
            (76723, 47952, 16000),
            (220490, 22049, 22050),  # the nearest small ratio is 1 : 1
            (17_000_001, 44100, 22050),  # beyond what float32 counts one by one
        ],
    )
    def test_length_is_rounded_half_up(
        self, num_samples: int, from_rate: int, to_rate: int
    ) -> None:
        wanted = floor(Fraction(num_samples * to_rate, from_rate) + Fraction(1, 2))

        assert resample(torch.zeros(num_samples), from_rate, to_rate).shape == (wanted,)

    @pytest.mark.parametrize(
        ("from_rate", "to_rate"), [(48000, 22050), (44100, 16000), (16000, 22050)]
    )
    @pytest.mark.parametrize("frequency", [55, 440, 6500])
    def test_a_resampled_sine_is_the_sine_at_the_new_rate(
        self, frequency: int, from_rate: int, to_rate: int
    ) -> None:
        found = resample(sine(frequency, from_rate), from_rate, to_rate)

        inner = slice(1000, -1000)  # beyond its ends the sine was taken for silence
        wanted = sine(frequency, to_rate)
        # The filter is flat to -100 dB in its pass band; -94 dB of full scale is 2e-5.
        torch.testing.assert_close(found[inner], wanted[inner], atol=2e-5, rtol=0)

    def test_frequencies_beyond_the_new_rate_are_removed(self) -> None:
        found = resample(sine(9500, 44100), 44100, 16000)

        assert found[1000:-1000].abs().max() < 1e-4

    def test_an_odd_rate_is_resampled_to_the_nearest_small_ratio(self) -> None:
        found = resample(sine(440, 44056), 44056, 22050)

        # 1.6 s drift by up to 0.02 %, 0.3 ms: a tenth of a turn of 440 Hz, and much less here.
        wanted = sine(440, 22050)[: len(found)]
        torch.testing.assert_close(found[1000:-1000], wanted[1000:-1000], atol=0.05, rtol=0)

    @pytest.mark.parametrize("rates", [(0, 22050), (44100, 0), (1, 22050)])
    def test_impossible_rates_are_refused(self, rates: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="cannot resample"):
            resample(torch.zeros(10), *rates)


class TestLogMel:
    @SPECS
    def test_agrees_with_librosa(self, spec: MelSpec) -> None:
        waveform = noise(int(1.6 * spec.sample_rate))

        found = waveform_to_log_mel(waveform, spec)

        padded = np.pad(waveform.numpy().astype(np.float64), spec.padding, mode="reflect")
        spectrum = librosa.stft(
            padded, n_fft=1024, hop_length=spec.hop_length, win_length=1024, center=False
        )
        filters = librosa.filters.mel(
            sr=spec.basis_sample_rate, n_fft=1024, n_mels=spec.num_mels, fmin=0, fmax=8000
        )
        mel = filters @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
        # Ours is float32 throughout, librosa's float64: 1e-5 of the magnitude is float32's own.
        np.testing.assert_allclose(found.exp().numpy(), mel, rtol=1e-5)

    def test_paper44k_is_hifigan22k_of_the_same_samples(self) -> None:
        waveform = noise(70560)

        assert torch.equal(
            waveform_to_log_mel(waveform, PAPER), waveform_to_log_mel(waveform, HIFIGAN)
        )

    @pytest.mark.parametrize(
        ("spec", "num_samples", "columns"),
        [
            (PAPER, 70560, 275),
            (HIFIGAN, 35280, 137),
            (AUDIOLDM, 25600, 160),
            (HIFIGAN, 511, 1),
            (HIFIGAN, 512, 2),
            (AUDIOLDM, 433, 2),
        ],
    )
    def test_every_whole_hop_is_a_column(
        self, spec: MelSpec, num_samples: int, columns: int
    ) -> None:
        assert num_columns(num_samples, spec) == columns
        assert waveform_to_log_mel(noise(num_samples), spec).shape == (spec.num_mels, columns)

    @SPECS
    def test_silence_is_finite_and_constant(self, spec: MelSpec) -> None:
        found = waveform_to_log_mel(torch.zeros(spec.sample_rate), spec)

        torch.testing.assert_close(found, torch.full_like(found, np.log(1e-5)))

    @pytest.mark.parametrize(("spec", "as_if_slowed"), [(HIFIGAN, 1), (AUDIOLDM, 1), (PAPER, 2)])
    @pytest.mark.parametrize("frequency", [440, 1000, 5000])
    def test_a_sine_peaks_in_the_bin_of_its_frequency(
        self, spec: MelSpec, as_if_slowed: int, frequency: int
    ) -> None:
        mel = waveform_to_log_mel(sine(frequency, spec.sample_rate), spec)

        centres = librosa.mel_frequencies(n_mels=spec.num_mels + 2, fmin=0, fmax=8000)[1:-1]
        nearest = int(np.abs(centres - frequency / as_if_slowed).argmin())
        assert abs(int(mel.mean(dim=1).argmax()) - nearest) <= 1  # narrow filters are brighter

    def test_a_click_peaks_in_the_column_of_its_time(self) -> None:
        waveform = torch.zeros(22050)
        waveform[40 * 256 + 128] = 1

        assert int(waveform_to_log_mel(waveform, HIFIGAN).mean(dim=0).argmax()) == 40

    @pytest.mark.parametrize(
        "waveform",
        [torch.zeros(2, 9000), torch.zeros(9000, dtype=torch.float64), torch.zeros(384)],
        ids=["stereo", "float64", "short"],
    )
    def test_what_has_no_mel_is_refused(self, waveform: Tensor) -> None:
        with pytest.raises(ValueError, match="waveform"):
            waveform_to_log_mel(waveform, HIFIGAN)


class TestImage:
    def test_row_0_is_the_lowest_bin_and_channels_are_equal(self) -> None:
        log_mel = torch.full((80, 137), -80 / DECIBELS_PER_NEPER)
        log_mel[0] = 20 / DECIBELS_PER_NEPER

        image = log_mel_to_image(log_mel, HIFIGAN)

        assert image.shape == (3, 256, 256)
        assert image.dtype == torch.uint8
        assert image[0, 0, 0] == 255
        assert image[0, -1, 0] == 0
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])

    def test_stretching_grey_equals_the_papers_stretching_of_rgb(self) -> None:
        log_mel = uniform_mel(80, 275)

        image = log_mel_to_image(log_mel, PAPER)

        level = np.clip((20 * np.log10(np.exp(log_mel.double().numpy())) - 20 + 100) / 100, 0, 1)
        colours = Image.fromarray((level * 255).astype(np.uint8)).convert("RGB")
        stretched = np.array(colours.resize((256, 256), Image.Resampling.BICUBIC))
        difference = image.permute(1, 2, 0).numpy().astype(int) - stretched
        assert np.abs(difference).max() <= 1  # float32 may truncate to the next level
        assert np.mean(difference != 0) < 0.001

    @pytest.mark.parametrize(("level_db", "grey"), [(-300, 0), (-80, 0), (20, 255), (60, 255)])
    def test_levels_beyond_the_range_are_clipped(self, level_db: int, grey: int) -> None:
        log_mel = torch.full((80, 137), level_db / DECIBELS_PER_NEPER)

        assert log_mel_to_image(log_mel, HIFIGAN).unique().tolist() == [grey]

    def test_rounding_errs_by_half_a_grey_level_and_without_bias(self) -> None:
        spec = replace(HIFIGAN, num_mels=256)
        log_mel = uniform_mel(256, 256)

        error = error_db(
            image_to_log_mel(log_mel_to_image(log_mel, spec), spec, num_columns=256), log_mel
        )

        assert error.abs().max() <= GREY_LEVEL_DB / 2 + 1e-4  # float32 at 80 dB
        # The mean of 65536 errors of standard deviation 0.113 dB has one of 0.0004 dB.
        assert abs(error.mean()) < 0.002

    def test_truncation_makes_sound_half_a_grey_level_quieter(self) -> None:
        spec = replace(PAPER, num_mels=256)
        log_mel = uniform_mel(256, 256)

        error = error_db(
            image_to_log_mel(log_mel_to_image(log_mel, spec), spec, num_columns=256), log_mel
        )

        assert error.mean() == pytest.approx(-GREY_LEVEL_DB / 2, abs=0.002)
        assert error.min() >= -GREY_LEVEL_DB - 1e-4

    @pytest.mark.parametrize(("spec", "columns"), [(HIFIGAN, 137), (AUDIOLDM, 160)])
    def test_nearest_resizing_loses_nothing_where_no_side_shrinks(
        self, spec: MelSpec, columns: int
    ) -> None:
        spec = replace(spec, resize="nearest")
        log_mel = uniform_mel(spec.num_mels, columns)

        back = image_to_log_mel(log_mel_to_image(log_mel, spec), spec, num_columns=columns)

        assert error_db(back, log_mel).abs().max() <= GREY_LEVEL_DB / 2 + 1e-4

    @SPECS
    def test_bicubic_resizing_of_a_noise_mel_errs_by_under_one_decibel(self, spec: MelSpec) -> None:
        log_mel = waveform_to_log_mel(noise(int(1.6 * spec.sample_rate)), spec)

        back = image_to_log_mel(log_mel_to_image(log_mel, spec), spec, num_columns=log_mel.shape[1])

        # Noise is the hardest: 0.66 dB for 80 x 275, which shrinks, 0.54 and 0.37 for the others.
        error = error_db(back, log_mel)
        assert error.abs().mean() < 0.8
        assert abs(error.mean()) < 0.25

    def test_a_decoded_float_picture_reads_as_its_uint8_twin(self) -> None:
        image = log_mel_to_image(uniform_mel(80, 137), HIFIGAN)

        from_float = image_to_log_mel(image.float() / 127.5 - 1, HIFIGAN, num_columns=137)

        wanted = image_to_log_mel(image, HIFIGAN, num_columns=137)
        torch.testing.assert_close(from_float, wanted, atol=1e-5, rtol=0)  # -1 costs float32 bits

    def test_channels_of_a_decoded_picture_are_averaged(self) -> None:
        image = torch.tensor([-0.5, 0.0, 0.5]).reshape(3, 1, 1).expand(3, 256, 256)

        log_mel = image_to_log_mel(image, HIFIGAN, num_columns=137)

        torch.testing.assert_close(log_mel, torch.full((80, 137), -30 / DECIBELS_PER_NEPER))

    def test_an_overshooting_picture_stays_within_the_range(self) -> None:
        image = torch.cat([torch.full((3, 128, 256), -1.5), torch.full((3, 128, 256), 1.5)], dim=1)

        log_mel = image_to_log_mel(image, HIFIGAN, num_columns=137)

        assert log_mel.min() == pytest.approx(-80 / DECIBELS_PER_NEPER)
        assert log_mel.max() == pytest.approx(20 / DECIBELS_PER_NEPER)

    @SPECS
    def test_a_window_gives_the_same_bytes_every_time(self, spec: MelSpec) -> None:
        waveform = noise(int(1.6 * spec.sample_rate))

        first = window_image(waveform, spec)
        window_image(noise(int(1.6 * spec.sample_rate), seed=1), spec)

        assert torch.equal(window_image(waveform, spec), first)

    def test_silence_is_black(self) -> None:
        assert window_image(torch.zeros(35280), HIFIGAN).unique().tolist() == [0]

    def test_a_mel_of_another_specification_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'audioldm16k' must be \\(64, column\\)"):
            log_mel_to_image(uniform_mel(80, 137), AUDIOLDM)

    def test_a_picture_that_is_not_rgb_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be \\(3, height, width\\)"):
            image_to_log_mel(torch.zeros(1, 256, 256), HIFIGAN, num_columns=137)


class TestWindowImages:
    @SPECS
    @pytest.mark.parametrize("count", [1, 3, 4, 22])
    def test_many_windows_have_the_bytes_of_each_alone(self, spec: MelSpec, count: int) -> None:
        length = int(1.6 * spec.sample_rate)
        waveforms = torch.stack([noise(length, seed=seed) for seed in range(count)])
        images = window_images(waveforms, spec)
        assert torch.equal(images, torch.stack([window_image(one, spec) for one in waveforms]))

    @SPECS
    def test_a_window_depends_on_no_other(self, spec: MelSpec) -> None:
        length = int(1.6 * spec.sample_rate)
        waveforms = torch.stack([noise(length, seed=seed) for seed in range(7)])
        images = window_images(waveforms, spec)
        assert not torch.equal(images[0], images[1])
        assert torch.equal(window_images(waveforms.flip(0), spec).flip(0), images)

    @pytest.mark.parametrize(
        "waveforms", [torch.zeros(35280), torch.zeros(0, 35280), torch.zeros(2, 35280).double()]
    )
    def test_other_waveforms_are_refused(self, waveforms: Tensor) -> None:
        with pytest.raises(ValueError, match="waveforms must be float32"):
            window_images(waveforms, HIFIGAN)

    def test_waveforms_too_short_for_a_mel_are_refused(self) -> None:
        with pytest.raises(ValueError, match="100 samples"):
            window_images(torch.zeros(2, 100), HIFIGAN)
