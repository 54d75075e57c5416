"""How well windows are given back by an autoencoder: each, and all together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionError:
    """How well windows are given back: mean squared errors of whitened KL latents."""

    num_windows: int
    video_error: float
    """Over all frames."""
    mean_frame_error: float
    """Of giving back, for each frame, the mean of its window's frames: what shows no motion."""
    audio_error: float
    """About 1 for giving back the mean of the sounds that the autoencoder first learned from."""

    @property
    def video_ratio(self) -> float:
        """Below 1 where moving things move."""
        return self.video_error / self.mean_frame_error

    def to_record(self) -> dict[str, float]:
        """As JSON values."""
        return {**asdict(self), "video_ratio": self.video_ratio}


def measure_reconstruction(autoencoder: Autoencoder, windows: WindowLatents) -> ReconstructionError:
    """The error over all windows; see `window_errors`."""
    overall = mean_error(window_errors(autoencoder, windows))
    return ReconstructionError(
        num_windows=windows.num_windows,
        video_error=overall.video,
        mean_frame_error=overall.mean_frame,
        audio_error=overall.audio,
    )


@torch.no_grad()
def window_errors(autoencoder: Autoencoder, windows: WindowLatents) -> tuple[WindowError, ...]:
    """Of each window, coded and decoded by the modes of its posteriors, in float32."""
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
