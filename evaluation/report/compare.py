"""One clip beside its reconstruction: pictures, sound, mels, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.reconstruction import (
    ImageDecoder,
    covering_windows,
    mel_error_db,
    psnr_db,
    reconstruct_frames,
    reconstruct_sound,
    stitch_log_mels,
)
from evaluation.report.media import mel_png, mp4_bytes
from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.rows import LatentRow
from latents.clip import Clip, WindowGrid
from pipeline.recorded import Recorded
from pipeline.sound_images import mel_images

SHOWN_SECONDS = 6
"""Longer clips are compared, and shown, for so long from their start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendition:
    """A clip as a browser plays it."""

    video: bytes
    """mp4 with sound."""
    mel: bytes
    """PNG of its log mel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A clip's reconstruction, and the clip itself where it is to be had."""

    seconds: float
    """Shown, from the clip's start."""
    original: Rendition | None
    reconstruction: Rendition
    psnr_db: float | None
    mel_error_db: float | None


class CompareClip:
    """Decodes a clip's latents and sets the result beside the clip.

    Args:
        level: The ``kl`` level.
        recorded: The settings it was made with.
        decoder: The KL-VAE that encoded it.
        num_threads: Threads that decode.
    """

    def __init__(
        self,
        level: CachedLevel,
        recorded: Recorded,
        decoder: ImageDecoder,
        *,
        num_threads: int,
    ) -> None:
        self._level, self._recorded = level, recorded
        self._decoder, self._num_threads = decoder, num_threads

    def __call__(
        self,
        cached: CachedClip,
        original: Clip | None,
    ) -> Comparison:
        """Compares one clip.

        Raises:
            DamagedError: The latents are not what the log says.
        """
        grid = window_grid(cached.rows["kl.audio"])
        num_frames = shown_frames(cached.rows["kl.video"], grid)
        windows = covering_windows(grid, num_frames)
        moments = self._level.read(cached, "kl.video", 0, num_frames)
        frames = self._decode(moments)
        sound_moments = np.concatenate(
            [self._level.read(cached, "kl.audio", window, window + 1) for window in windows]
        )
        images = self._decode(sound_moments)
        log_mel = self._stitch(torch.from_numpy(images), grid, windows)
        reconstruction = self._render(frames, self._sound(log_mel, grid, num_frames), log_mel)
        if original is None:
            return Comparison(
                seconds=num_frames / self._recorded.clip.fps,
                original=None,
                reconstruction=reconstruction,
                psnr_db=None,
                mel_error_db=None,
            )
        return self._beside(original, frames, log_mel, reconstruction, grid, windows)

    def _beside(
        self,
        original: Clip,
        frames: NDArray[np.uint8],
        log_mel: Tensor,
        reconstruction: Rendition,
        grid: WindowGrid,
        windows: tuple[int, ...],
    ) -> Comparison:
        used = replace(grid, num_windows=windows[-1] + 1)
        drawn = mel_images(
            original.waveform,
            sample_rate=original.sample_rate,
            grid=used,
            clip_spec=self._recorded.clip,
            mel=self._recorded.mel,
        )[list(windows)]
        original_mel = self._stitch(drawn, grid, windows)
        num_samples = self._recorded.clip.num_samples(len(frames), original.sample_rate)
        return Comparison(
            seconds=len(frames) / self._recorded.clip.fps,
            original=Rendition(
                video=mp4_bytes(
                    original.frames[: len(frames)],
                    fps=original.key.fps,
                    waveform=original.waveform[:, :num_samples],
                    sample_rate=original.sample_rate,
                ),
                mel=mel_png(original_mel, self._recorded.mel),
            ),
            reconstruction=reconstruction,
            psnr_db=psnr_db(original.frames[: len(frames)], frames),
            mel_error_db=mel_error_db(original_mel, log_mel),
        )

    def _decode(self, moments: NDArray[Any]) -> NDArray[np.uint8]:
        return reconstruct_frames(self._decoder, moments, num_threads=self._num_threads)

    def _stitch(self, images: Tensor, grid: WindowGrid, windows: tuple[int, ...]) -> Tensor:
        starts = list(grid.starts())
        return stitch_log_mels(
            list(images),
            [starts[window] for window in windows],
            window_frames=grid.frames,
            clip_spec=self._recorded.clip,
            mel=self._recorded.mel,
        )

    def _sound(self, log_mel: Tensor, grid: WindowGrid, num_frames: int) -> NDArray[np.float32]:
        clip_spec, mel = self._recorded.clip, self._recorded.mel
        return reconstruct_sound(
            log_mel,
            mel,
            first_sample=clip_spec.first_sample(grid.first_frame, mel.sample_rate),
            num_samples=clip_spec.num_samples(num_frames, mel.sample_rate),
        )

    def _render(
        self, frames: NDArray[np.uint8], sound: NDArray[np.float32], log_mel: Tensor
    ) -> Rendition:
        mel = self._recorded.mel
        video = mp4_bytes(
            frames, fps=self._recorded.clip.fps, waveform=sound, sample_rate=mel.sample_rate
        )
        return Rendition(video=video, mel=mel_png(log_mel, mel))


def window_grid(row: LatentRow) -> WindowGrid:
    """The windows of a clip, from its ``kl.audio`` row."""
    assert row.window_frames is not None
    assert row.window_stride is not None
    assert row.window_first_frame is not None
    assert row.num_windows is not None
    return WindowGrid(
        frames=row.window_frames,
        stride=row.window_stride,
        first_frame=row.window_first_frame,
        num_windows=row.num_windows,
    )


def shown_frames(row: LatentRow, grid: WindowGrid) -> int:
    """Frames of a clip that are compared: its first seconds, and at least one window of sound."""
    wanted = max(SHOWN_SECONDS * row.fps, grid.first_frame + grid.frames)
    return min(row.shape[0], wanted)
