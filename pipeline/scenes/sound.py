"""Sound of the scenes: a stereo mix, struck and swept tones, shaped noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]
"""One channel of sound, (sample,)."""


class Mix:
    """A stereo mix being built.

    Attributes:
        sample_rate: Hz.
        times: Time of each sample in seconds, (sample,).
        rng: Source of every random number in the sound.
    """

    __slots__ = ("_channels", "rng", "sample_rate", "times")

    def __init__(self, num_samples: int, sample_rate: int, rng: np.random.Generator) -> None:
        self.sample_rate = sample_rate
        self.times: Signal = np.arange(num_samples) / sample_rate
        self.rng = rng
        self._channels = np.zeros((2, num_samples))

    def place(self, grain: Signal, start_seconds: float, *, gain: float, pan: float) -> None:
        """Add a short sound that begins at `start_seconds`; what lies outside is cut off.

        Args:
            grain: The sound, (sample,).
            start_seconds: When its first sample is heard.
            gain: Factor of its amplitude.
            pan: 0 left, 1 right.
        """
        start = round(start_seconds * self.sample_rate)
        first, last = max(-start, 0), min(len(self.times) - start, len(grain))
        if first < last:
            left, right = _pan_gains(pan)
            part = gain * grain[first:last]
            self._channels[0, start + first : start + last] += left * part
            self._channels[1, start + first : start + last] += right * part

    def spread(self, signal: Signal, *, gain: float | Signal = 1.0, pan: float | Signal) -> None:
        """Add a sound as long as the mix, with gain and pan that may change over time."""
        left, right = _pan_gains(pan)
        self._channels[0] += left * gain * signal
        self._channels[1] += right * gain * signal

    def noise(self, low_hz: float, high_hz: float) -> Signal:
        """Noise as long as the mix in a band with soft edges, root mean square 1."""
        return band_noise(len(self.times), self.sample_rate, low_hz, high_hz, self.rng)

    def grain_times(self, seconds: float) -> Signal:
        """Times of the samples of a sound that lasts `seconds`, from 0."""
        return np.arange(max(1, round(seconds * self.sample_rate))) / self.sample_rate

    def to_waveform(self) -> NDArray[np.float32]:
        """The mix, (2, sample), in (-1, 1); a soft limiter bends what is above a half."""
        magnitude = np.abs(self._channels)
        over = np.maximum(magnitude - 0.5, 0)
        limited = np.minimum(magnitude, 0.5) + 0.49 * np.tanh(over / 0.49)
        return (np.sign(self._channels) * limited).astype(np.float32)


def band_noise(
    num_samples: int, sample_rate: int, low_hz: float, high_hz: float, rng: np.random.Generator
) -> Signal:
    """Noise in a band, (sample,), root mean square 1; its edges fall by 12 dB an octave."""
    length = 1 << max(num_samples - 1, 1).bit_length()  # the fast sizes of the FFT
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hz = np.fft.rfftfreq(length, 1 / sample_rate)
    high_hz = min(high_hz, 0.45 * sample_rate)
    shape = 1 / np.hypot(1, (low_hz / np.maximum(hz, 1e-3)) ** 2) / np.hypot(1, (hz / high_hz) ** 2)
    noise: Signal = np.fft.irfft(spectrum * shape, length)[:num_samples]
    return noise / max(float(np.sqrt(np.mean(noise * noise))), 1e-9)


def struck(
    times: Signal, hz: float, decay_seconds: float, partials: tuple[tuple[float, float], ...]
) -> Signal:
    """A struck body: decaying partials (ratio to `hz`, amplitude), higher ones dying sooner."""
    tone = np.zeros_like(times)
    for ratio, amplitude in partials:
        decay = decay_seconds / math.sqrt(ratio)
        tone += amplitude * np.sin(2 * math.pi * hz * ratio * times) * np.exp(-times / decay)
    return tone * attack(times, 0.002)


def attack(times: Signal, rise_seconds: float) -> Signal:
    """A ramp from 0 to 1, so that no sound begins with a click of its own."""
    return np.minimum(times / rise_seconds, 1)


def sweep(hz: Signal, sample_rate: int) -> Signal:
    """A sine whose frequency follows `hz`, (sample,)."""
    return np.sin(2 * math.pi * np.cumsum(hz) / sample_rate)


def _pan_gains(pan: float | Signal) -> tuple[float | Signal, float | Signal]:
    """Equal-power gains; the far ear keeps a part, as both ears hear a scene."""
    angle = (0.15 + 0.7 * np.clip(pan, 0, 1)) * (math.pi / 2)
    return np.cos(angle), np.sin(angle)
