"""How well each window is given back by an autoencoder, in the trainer's own terms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latents.models.autoencoder_files import Autoencoder
from latents.models.signal_decoder import SignalDecoder
from latents.posterior import posterior_mode
from training.window_latents import WindowLatents

_STILL = 1e-6
"""Mean squares of whitened latents below this are rounding: nothing moves."""
_MEASURED_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowError:
    """How well a window is given back: mean squared errors of whitened KL latents."""

    video: float
    """Over all frames."""
    mean_frame: float
    """Of giving back, for each frame, the mean of the window's frames."""
    audio: float

    @property
    def video_ratio(self) -> float | None:
        """Below 1 where moving things move; None where nothing does."""
        return self.video / self.mean_frame if self.mean_frame > _STILL else None


def mean_error(errors: Sequence[WindowError]) -> WindowError:
    """Of all windows together; they are of one shape."""
    return WindowError(
        video=math.fsum(one.video for one in errors) / len(errors),
        mean_frame=math.fsum(one.mean_frame for one in errors) / len(errors),
        audio=math.fsum(one.audio for one in errors) / len(errors),
    )


@torch.no_grad()
def window_errors(autoencoder: Autoencoder, windows: WindowLatents) -> tuple[WindowError, ...]:
    """Of each window what `training.autoencoder.measure_reconstruction` measures of all."""
    decoder, errors = autoencoder.signal_decoder, list[WindowError]()
    device = decoder.video_whitening.device
    for first in range(0, windows.num_windows, _MEASURED_AT_ONCE):
        batch = windows.take(range(first, min(first + _MEASURED_AT_ONCE, windows.num_windows)))
        video, audio = batch.video.to(device), batch.audio.to(device)
        z_v = posterior_mode(autoencoder.video_encoder(video))
        z_a = posterior_mode(autoencoder.audio_encoder(audio))
        errors.extend(latent_errors(decoder, z_v, z_a, video=video, audio=audio))
    return tuple(errors)


@torch.no_grad()
def latent_errors(
    decoder: SignalDecoder, z_v: Tensor, z_a: Tensor, *, video: Tensor, audio: Tensor
) -> Iterator[WindowError]:
    """Of each window of a batch.

    Args:
        decoder: Of the latents.
        z_v: Perceptual latents of the windows' pictures.
        z_a: Perceptual latents of their sound.
        video: KL means, scaled as the encoders read them (window, frame, channel, row, column).
        audio: The same of their mel images (window, channel, row, column).
    """
    video, audio = decoder.whiten_video(video), decoder.whiten_audio(audio)
    squares = (
        _mean_squares(decoder.whitened_video(z_v) - video),
        _mean_squares(video - video.mean(dim=1, keepdim=True)),
        _mean_squares(decoder.whitened_audio(z_a) - audio),
    )
    for given_back, mean_frame, sound in zip(*squares, strict=True):
        yield WindowError(video=given_back, mean_frame=mean_frame, audio=sound)


def _mean_squares(differences: Tensor) -> Sequence[float]:
    """Of each window of a batch."""
    means: list[float] = differences.float().square().flatten(1).mean(dim=1).tolist()
    return means
