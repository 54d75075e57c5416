"""Windows as they are seen and heard: as they were before encoding, or from cached latents."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.reconstruction import ImageDecoder
from evaluation.report.compare import Rendition, window_grid
from evaluation.report.media import mel_png, mp4_bytes, sound_mel
from evaluation.sampling.decode import Sound, WindowDecoder
from latents.cache.reader import CachedClip, CachedLevel
from latents.posterior import posterior_mode
from pipeline.originals import Originals, Unavailable
from pipeline.recorded import Recorded

_IMAGES_AT_A_TIME = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlayedWindow:
    """A window's pictures and sound."""

    frames: NDArray[np.uint8]
    """RGB (frame, 3, height, width)."""
    sound: Sound


class ThreadedDecoder:
    """A KL-VAE that decodes parts of its images in threads; it changes no byte."""

    def __init__(self, decoder: ImageDecoder, *, num_threads: int) -> None:
        self._decoder, self._num_threads = decoder, num_threads

    def decode(self, latents: Tensor) -> Tensor:
        """As `ImageDecoder.decode`."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            parts = list(pool.map(self._decoder.decode, torch.split(latents, _IMAGES_AT_A_TIME)))
        return torch.cat(parts)


class ClipWindows:
    """Finds windows of cached clips to be played.

    Args:
        level: The ``kl`` level.
        recorded: The settings it was made with.
        originals: Finds clips as they were.
        decoder: Of KL latents such as the level's.
    """

    def __init__(
        self,
        level: CachedLevel,
        recorded: Recorded,
        originals: Originals,
        decoder: WindowDecoder,
    ) -> None:
        self._level, self._originals, self._decoder = level, originals, decoder
        self._clip, self._mel = recorded.clip, recorded.mel

    def start_frame(self, cached: CachedClip, window: int) -> int:
        """First frame of a window within its clip."""
        grid = window_grid(cached.rows["kl.audio"])
        return grid.first_frame + window * grid.stride

    def num_samples(self, num_frames: int, sample_rate: int) -> int:
        """Of the sound beside so many frames."""
        return self._clip.num_samples(num_frames, sample_rate)

    def original(self, cached: CachedClip, window: int) -> PlayedWindow | Unavailable:
        """The source's own pictures and sound, or why they are not to be had."""
        clip = self._originals.find(cached)
        if isinstance(clip, Unavailable):
            return clip
        num_frames = window_grid(cached.rows["kl.audio"]).frames
        frame = self.start_frame(cached, window)
        first = self._clip.first_sample(frame, clip.sample_rate)
        stop = first + self.num_samples(num_frames, clip.sample_rate)
        return PlayedWindow(
            frames=clip.frames[frame : frame + num_frames],
            sound=Sound(waveform=clip.waveform[:, first:stop], sample_rate=clip.sample_rate),
        )

    def kl_means(self, cached: CachedClip, window: int) -> tuple[Tensor, Tensor]:
        """Means of its frames (frame, channel, row, column), and of its mel image (1, ...)."""
        num_frames = window_grid(cached.rows["kl.audio"]).frames
        frame = self.start_frame(cached, window)
        video = self._level.read(cached, "kl.video", frame, frame + num_frames)
        audio = self._level.read(cached, "kl.audio", window, window + 1)
        return posterior_mode(torch.from_numpy(video)), posterior_mode(torch.from_numpy(audio))

    def from_kl(self, cached: CachedClip, window: int) -> PlayedWindow:
        """What its KL latents give back."""
        video, audio = self.kl_means(cached, window)
        return PlayedWindow(
            frames=self._decoder.kl_frames(video), sound=self._decoder.kl_sound(audio)
        )

    def render(self, window: PlayedWindow) -> Rendition:
        """For a browser, with the mel of what is heard."""
        waveform, rate = window.sound.waveform, window.sound.sample_rate
        return Rendition(
            video=mp4_bytes(window.frames, fps=self._clip.fps, waveform=waveform, sample_rate=rate),
            mel=self.mel(window.sound),
        )

    def mel(self, sound: Sound) -> bytes:
        """PNG of the log mel of what is heard."""
        return mel_png(sound_mel(sound.waveform, sound.sample_rate, self._mel), self._mel)
