"""Waveform <-> natural-log mel <-> RGB mel image, for the mel of each supported vocoder.

The chain is the paper's: a HiFi-GAN mel, its decibels mapped to [0, 1], written as a grey
picture, stretched to the square that the KL-VAE reads. Equal inputs give equal bytes on one
thread; more threads may change the last bits of the mel.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import librosa
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from latents.errors import ConfigError
from latents.torchaudio_stub import install_torchaudio_stub

Rounding = Literal["round", "truncate"]
Resize = Literal["bicubic", "nearest"]

DECIBELS_PER_NEPER = 20 / math.log(10)
_POWER_OFFSET = 1e-9  # under HiFi-GAN's square root
_MAX_PHASES = 3000
_CPU_WINDOWS = 4
"""Waveforms that a CPU transforms at a time: of more, the spectra leave its cache."""
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True, kw_only=True, slots=True)
class MelSpec:
    """The mel that a vocoder reads, and how it is drawn as a picture.

    Columns follow HiFi-GAN's ``meldataset.py``: the waveform is reflected by
    (n_fft - hop_length) / 2 at both ends and cut without centring, so column t is centred at
    waveform sample (t + 1/2) * hop_length. Filters are Slaney's, of unit area.
    """

    name: str
    """For people; it is no part of what the mel is."""
    sample_rate: int
    """Rate of the waveform, in Hz."""
    n_fft: int = 1024
    """Length of the Fourier transform, in waveform samples."""
    win_length: int = 1024
    """Length of the Hann window, in waveform samples."""
    hop_length: int = 256
    """Waveform samples from one column to the next."""
    num_mels: int = 80
    """Mel bins, the rows."""
    fmin: int = 0
    """Lower edge of the lowest filter, in Hz at ``basis_sample_rate``."""
    fmax: int = 8000
    """Upper edge of the highest filter, in Hz at ``basis_sample_rate``."""
    basis_sample_rate: int
    """Rate for which the filters are built, in Hz. It differs from ``sample_rate`` only where
    sound is read as if slowed down, as the paper's code does."""
    log_floor_db: int = -100
    """Magnitudes are raised to this before the logarithm (HiFi-GAN's 1e-5)."""
    floor_db: int = -80
    """Level drawn black; what is quieter is black too."""
    ceiling_db: int = 20
    """Level drawn white; what is louder is white too."""
    image_size: int = 256
    """Height and width of the picture, in pixels."""
    rounding: Rounding = "round"
    """``truncate`` is the paper's code and makes sound 0.2 dB quieter on average."""
    resize: Resize = "bicubic"
    """``bicubic`` is the paper's; ``nearest`` loses nothing where no side shrinks."""

    def __post_init__(self) -> None:
        for field in ("sample_rate", "hop_length", "num_mels", "image_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"mel.{field} is {getattr(self, field)}; it must be >= 1")
        if self.n_fft % 2 or self.hop_length % 2:
            raise ValueError(
                f"mel.n_fft is {self.n_fft} and mel.hop_length {self.hop_length}; both must be even"
            )
        if not 2 * self.hop_length <= self.win_length <= self.n_fft:
            raise ValueError(
                f"mel.win_length is {self.win_length}; it must be between twice hop_length "
                f"({2 * self.hop_length}) and n_fft ({self.n_fft})"
            )
        if not 0 <= self.fmin < self.fmax <= self.basis_sample_rate // 2:
            raise ValueError(
                f"mel.fmin is {self.fmin} and mel.fmax {self.fmax}; they must satisfy "
                f"0 <= fmin < fmax <= {self.basis_sample_rate // 2}, half of basis_sample_rate"
            )
        if not self.log_floor_db <= self.floor_db < self.ceiling_db:
            raise ValueError(
                f"mel.floor_db is {self.floor_db}; it must lie from log_floor_db "
                f"({self.log_floor_db}) to below ceiling_db ({self.ceiling_db})"
            )
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"mel.rounding is {self.rounding!r}; it must be 'round' or 'truncate'")
        if self.resize not in get_args(Resize):
            raise ValueError(f"mel.resize is {self.resize!r}; it must be 'bicubic' or 'nearest'")

    @property
    def canonical(self) -> dict[str, int | str]:
        """Everything that changes the picture, as integers and strings ready for hashing."""
        canonical = asdict(self)
        del canonical["name"]
        return canonical

    @property
    def padding(self) -> int:
        """Waveform samples reflected at each end."""
        return (self.n_fft - self.hop_length) // 2

    @property
    def min_samples(self) -> int:
        """Shortest waveform with a mel: one column, and enough to reflect."""
        return max(self.hop_length, self.padding + 1)


_SPECS = {
    spec.name: spec
    for spec in (
        MelSpec(name="hifigan22k", sample_rate=22050, basis_sample_rate=22050),
        MelSpec(
            name="audioldm16k",
            sample_rate=16000,
            basis_sample_rate=16000,
            num_mels=64,
            hop_length=160,
        ),
        MelSpec(name="paper44k", sample_rate=44100, basis_sample_rate=22050, rounding="truncate"),
    )
}


def mel_spec(name: str) -> MelSpec:
    """The mel of this name: ``hifigan22k``, ``audioldm16k`` or ``paper44k``.

    ``hifigan22k`` is read by HiFi-GAN V1 and BigVGAN-v2 22 kHz, ``audioldm16k`` by AudioLDM's
    vocoder. ``paper44k`` is the MM-LDM code: 44.1 kHz sound through filters built for 22.05 kHz,
    for parity with its published numbers.

    Raises:
        ConfigError: There is no mel of this name.
    """
    if name not in _SPECS:
        nearest = get_close_matches(name, _SPECS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"no mel is called {name!r}; did you mean {nearest!r}? Known: {', '.join(_SPECS)}"
        )
    return _SPECS[name]


def num_columns(num_samples: int, spec: MelSpec) -> int:
    """Columns of the mel of a waveform of ``num_samples``: one for every whole hop."""
    return num_samples // spec.hop_length


def downmix(waveform: Tensor) -> Tensor:
    """Mean over the channels of a waveform (channel, sample); gives (sample,)."""
    if waveform.ndim != 2 or not len(waveform):
        raise ValueError(f"waveform must be (channel, sample), got {tuple(waveform.shape)}")
    return waveform.mean(dim=0)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the rate of a waveform (..., sample) by windowed-sinc interpolation.

    The filter is Kaiser-windowed with resampy's "kaiser_best" settings. The result has
    num_samples * to_rate / from_rate samples, rounded half up. Where the ratio in lowest terms
    needs over 3000 filter phases (44056 Hz to 22050 Hz, but none of the usual rates), the nearest
    ratio within that is taken, less than 0.02 % off: memory grows with the square of the phases.

    Raises:
        ValueError: A rate is below 1 Hz, or the two are more than a factor of 100 apart.
    """
    lower, higher = sorted((from_rate, to_rate))
    if lower < 1 or higher > 100 * lower:
        raise ValueError(
            f"cannot resample from {from_rate} to {to_rate} Hz; rates must be >= 1 Hz and no more "
            "than a factor of 100 apart"
        )
    if from_rate == to_rate:
        return waveform
    install_torchaudio_stub()
    # Here, not at the top: torchaudio may only be imported once the stub has been considered.
    from torchaudio.functional import resample as sinc_resample

    orig_freq, new_freq = _small_ratio(from_rate, to_rate)
    num_samples = waveform.shape[-1]
    wanted = math.floor(Fraction(num_samples * to_rate, from_rate) + Fraction(1, 2))
    # Zeros behind, so that neither the ratio nor torchaudio's float32 length leaves it short.
    spare = orig_freq + num_samples // 1000
    resampled: Tensor = sinc_resample(
        functional.pad(waveform, (0, spare)),
        orig_freq,
        new_freq,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return resampled[..., :wanted].contiguous()


def waveform_to_log_mel(waveform: Tensor, spec: MelSpec) -> Tensor:
    """Natural-log mel magnitudes (num_mels, column) of a mono waveform (sample,).

    The waveform is float32 at ``spec.sample_rate``, nominally in [-1, 1]. Source: HiFi-GAN
    ``meldataset.mel_spectrogram``.

    Raises:
        ValueError: The waveform is not mono float32, or shorter than ``spec.min_samples``.
    """
    if waveform.ndim != 1 or waveform.dtype != torch.float32:
        raise ValueError(
            f"waveform must be float32 (sample,), got {waveform.dtype} {tuple(waveform.shape)}; "
            "use downmix() first"
        )
    return _log_mels(waveform[None], spec)[0]


def _log_mels(waveforms: Tensor, spec: MelSpec) -> Tensor:
    """Log mels (waveform, num_mels, column) of waveforms (waveform, sample)."""
    if waveforms.shape[1] < spec.min_samples:
        raise ValueError(
            f"waveform has {waveforms.shape[1]} samples; mel {spec.name!r} needs {spec.min_samples}"
        )
    padded = functional.pad(waveforms, (spec.padding, spec.padding), mode="reflect")
    spectrum = torch.stft(
        padded,
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        window=torch.hann_window(spec.win_length, device=waveforms.device),
        center=False,
        return_complex=True,
    )
    magnitudes = (spectrum.real.square() + spectrum.imag.square() + _POWER_OFFSET).sqrt()
    basis = mel_basis(spec).to(waveforms.device)
    # One product each: a product of all could sum in another order, and so in other last bits.
    mels = torch.stack([basis @ magnitude for magnitude in magnitudes])
    return mels.clamp(min=10 ** (spec.log_floor_db / 20)).log()


def check_log_mel(log_mel: Tensor, spec: MelSpec) -> None:
    """Raise ValueError unless this is (num_mels, column) with at least one column."""
    if log_mel.ndim != 2 or len(log_mel) != spec.num_mels or not log_mel.shape[1]:
        raise ValueError(
            f"log mel {spec.name!r} must be ({spec.num_mels}, column), got {tuple(log_mel.shape)}"
        )


@lru_cache(maxsize=8)
def mel_basis(spec: MelSpec) -> Tensor:
    """Mel filters, float32 (num_mels, n_fft / 2 + 1) on the CPU; shared, so never write to it."""
    filters = librosa.filters.mel(
        sr=spec.basis_sample_rate,
        n_fft=spec.n_fft,
        n_mels=spec.num_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
        dtype=np.float32,
    )
    return torch.from_numpy(filters)


def log_mel_to_image(log_mel: Tensor, spec: MelSpec) -> Tensor:
    """Draw a log mel (num_mels, column) as uint8 RGB (3, image_size, image_size).

    Row 0 is the lowest mel bin; the three channels are equal. Decibels from ``floor_db`` to
    ``ceiling_db`` become 0 to 255, and the 8-bit picture is stretched to the square.
    """
    check_log_mel(log_mel, spec)
    return _stretched(_grey_levels(log_mel[None], spec), spec)[0]


def _grey_levels(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """Decibels from ``floor_db`` to ``ceiling_db`` as uint8, 0 to 255."""
    span_db = spec.ceiling_db - spec.floor_db
    levels = ((log_mels * DECIBELS_PER_NEPER - spec.floor_db) / span_db).clamp(0, 1) * 255
    return (levels.round() if spec.rounding == "round" else levels).to(torch.uint8)


def _stretched(greys: Tensor, spec: MelSpec) -> Tensor:
    """RGB squares (picture, 3, image_size, image_size) of grey pictures (picture, row, column)."""
    size = spec.image_size
    images = np.empty((len(greys), 3, size, size), np.uint8)
    for image, grey in zip(images, greys.cpu().numpy(), strict=True):
        image[:] = np.asarray(Image.fromarray(grey).resize((size, size), _FILTERS[spec.resize]))
    return torch.from_numpy(images).to(greys.device)


def image_to_log_mel(image: Tensor, spec: MelSpec, *, num_columns: int) -> Tensor:
    """Read a log mel, float32 (num_mels, num_columns), from a picture (3, height, width).

    Inverse of `log_mel_to_image` up to 8-bit rounding and resizing. The picture is uint8 in
    [0, 255], or floating in [-1, 1] as a KL-VAE decodes it. Channels are averaged, and the result
    lies in [floor_db, ceiling_db].
    """
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image must be (3, height, width), got {tuple(image.shape)}")
    pixels = image.float() / 255 if image.dtype == torch.uint8 else (image.float() + 1) / 2
    picture = Image.fromarray(pixels.mean(dim=0).cpu().numpy())
    shrunk = picture.resize((num_columns, spec.num_mels), _FILTERS[spec.resize])
    level = torch.from_numpy(np.array(shrunk)).to(image.device).clamp(0, 1)
    return (level * (spec.ceiling_db - spec.floor_db) + spec.floor_db) / DECIBELS_PER_NEPER


def window_image(waveform: Tensor, spec: MelSpec) -> Tensor:
    """Mel image, uint8 (3, image_size, image_size), of a window's mono waveform (sample,)."""
    return log_mel_to_image(waveform_to_log_mel(waveform, spec), spec)


def window_images(waveforms: Tensor, spec: MelSpec) -> Tensor:
    """Mel images, uint8 (window, 3, image_size, image_size), of windows' mono waveforms.

    On the CPU each has the bytes that `window_image` gives.

    Args:
        waveforms: float32 (window, sample), at least one, at ``spec.sample_rate``.
        spec: The mel, and how it is drawn.

    Raises:
        ValueError: The waveforms are not mono float32, or shorter than ``spec.min_samples``.
    """
    if waveforms.ndim != 2 or not len(waveforms) or waveforms.dtype != torch.float32:
        raise ValueError(
            f"waveforms must be float32 (window, sample), got {waveforms.dtype} "
            f"{tuple(waveforms.shape)}"
        )
    at_a_time = _CPU_WINDOWS if waveforms.device.type == "cpu" else len(waveforms)
    greys = [
        _grey_levels(_log_mels(waveforms[start : start + at_a_time], spec), spec)
        for start in range(0, len(waveforms), at_a_time)
    ]
    return _stretched(torch.cat(greys), spec)


def _small_ratio(from_rate: int, to_rate: int) -> tuple[int, int]:
    """The ratio of two rates in lowest terms of at most 3000, or the nearest such ratio."""
    if from_rate >= to_rate:
        ratio = Fraction(to_rate, from_rate).limit_denominator(_MAX_PHASES)
        return ratio.denominator, ratio.numerator
    ratio = Fraction(from_rate, to_rate).limit_denominator(_MAX_PHASES)
    return ratio.numerator, ratio.denominator
