"""Perceptual latents of windows to what is seen and heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evaluation.reconstruction import ImageDecoder
from latents.mel import downmix, image_to_log_mel, num_columns, resample
from latents.models.signal_decoder import SignalDecoder
from pipeline.job import LatentScale
from pipeline.recorded import Recorded
from pipeline.write_video import AAC_SAMPLE_RATES

_PLAYED_RATE = 44100

Vocode = Callable[[Tensor], Tensor]
"""A log mel (num_mels, column) to its waveform, float32 (column * hop_length,) on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """A waveform and its rate."""

    waveform: NDArray[np.float32]
    """(channel, sample), nominally in [-1, 1]."""
    sample_rate: int
    """Hz."""


class WindowDecoder:
    """Latents to KL latents by the signal decoder, to pictures by the KL-VAE, to sound.

    Args:
        signal_decoder: Of the autoencoder whose encoders made such latents.
        kl_vae: Decodes frames and mel images alike.
        vocode: Reads the mel that ``recorded`` names.
        scale: How KL latents were scaled for the modal encoders.
        recorded: The frame grid, the windows and the mel.
        device: Where the signal decoder is.
    """

    def __init__(
        self,
        *,
        signal_decoder: SignalDecoder,
        kl_vae: ImageDecoder,
        vocode: Vocode,
        scale: LatentScale,
        recorded: Recorded,
        device: str,
    ) -> None:
        self._signal_decoder, self._kl_vae, self._vocode = signal_decoder, kl_vae, vocode
        self._scale, self._recorded, self._device = scale, recorded, device

    @property
    def fps(self) -> int:
        """Frames per second of every window."""
        return self._recorded.clip.fps

    @torch.no_grad()
    def frames(self, latent: Tensor) -> NDArray[np.uint8]:
        """Pictures of a window, RGB (frame, 3, height, width), of z_v (channel, row, column)."""
        scaled = self._signal_decoder.decode_video(latent[None].to(self._device))[0]
        return self.kl_frames(self._unscaled(scaled))

    @torch.no_grad()
    def sound(self, latent: Tensor) -> Sound:
        """Sound of a window, mono at the mel's rate, of z_a (channel, row, column)."""
        scaled = self._signal_decoder.decode_audio(latent[None].to(self._device))
        return self.kl_sound(self._unscaled(scaled))

    def kl_frames(self, means: Tensor) -> NDArray[np.uint8]:
        """Pictures, RGB (frame, 3, height, width), of KL means (frame, channel, row, column)."""
        frames: NDArray[np.uint8] = self._kl_vae.decode(means).cpu().numpy()
        return frames

    def kl_sound(self, means: Tensor) -> Sound:
        """Sound, mono at the mel's rate, of the KL means (1, channel, row, column) of a mel image.

        It has as many samples as a window lasts. A mel is of whole hops: what is left of the last
        one repeats its column.
        """
        clip, window, mel = self._recorded.clip, self._recorded.window, self._recorded.mel
        num_samples = clip.num_samples(window.frames, mel.sample_rate)
        whole = num_columns(num_samples, mel)
        image = self._kl_vae.decode(means)[0].cpu()
        log_mel = image_to_log_mel(image, mel, num_columns=whole)
        partial = -(-num_samples // mel.hop_length) - whole
        waveform = self._vocode(functional.pad(log_mel[None], (0, partial), mode="replicate")[0])
        return Sound(
            waveform=waveform[:num_samples].clamp(-1, 1).numpy()[None], sample_rate=mel.sample_rate
        )

    def _unscaled(self, scaled: Tensor) -> Tensor:
        return scaled / self._scale.factor + self._scale.shift


def playable(sound: Sound) -> Sound:
    """The same sound as AAC has it: more than two channels mixed down, other rates at 44.1 kHz."""
    waveform = torch.from_numpy(sound.waveform)
    if len(waveform) > 2:
        waveform = downmix(waveform)[None]
    rate = sound.sample_rate
    if rate not in AAC_SAMPLE_RATES:
        waveform, rate = resample(waveform, rate, _PLAYED_RATE), _PLAYED_RATE
    return Sound(waveform=waveform.numpy(), sample_rate=rate)
