"""Held-out windows through an autoencoder: what perceptual latents hold of KL latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.report.compare import Rendition
from evaluation.report.contents import choose_evenly, scene_label
from evaluation.report.media import still_frames, strip_png
from evaluation.report.metrics import MetricsLine
from evaluation.report.played import ClipWindows, PlayedWindow
from evaluation.sampling.decode import WindowDecoder
from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.source_split import Split
from latents.cache.splits import clips_of_split, share_held_out
from latents.errors import CacheError
from latents.models.signal_decoder import SignalDecoder
from latents.posterior import posterior_mode
from pipeline.job import LatentScale
from pipeline.originals import Originals, Unavailable
from training.reconstruction import WindowError, latent_errors, mean_error

SHOWN_WINDOWS = 4
MEASURED_CLIPS = 256
"""Of more clips so many, spread evenly, are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownWindow:
    """A window as it was beside what its cached perceptual latents give back."""

    clip: str
    window: int
    source: str
    """URI, or digest."""
    label: str | None
    start_seconds: float
    seconds: float
    original: Rendition | Unavailable
    decoded: Rendition
    strip: bytes
    """PNG of three rows of stills: by the KL-VAE, of the mean frame, by the autoencoder."""
    error: WindowError


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutClips:
    """The clips that are measured, and what they are."""

    split: Split
    """``validation``, or ``train`` where nothing is held out."""
    num_windows: int
    """Of the whole split."""
    measured: tuple[CachedClip, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowsContents:
    """All that is shown of an autoencoder."""

    autoencoder: str
    split: Split
    num_windows: int
    """Of the split."""
    errors: tuple[WindowError, ...]
    """Of the windows that were measured: all, or those of clips spread evenly over the split."""
    shown: tuple[ShownWindow, ...]
    metrics: tuple[MetricsLine, ...] | None
    """Of its training; None where it has left none."""

    @property
    def overall(self) -> WindowError:
        """Of all measured windows together."""
        return mean_error(self.errors)


def held_out_clips(level: CachedLevel, *, validation_share: float) -> HeldOutClips:
    """The validation split of a ``kl`` level; the train split where that is empty.

    Args:
        level: ``kl``, opened.
        validation_share: Of the sources, where people named no split.

    Raises:
        CacheError: There is no window at all.
    """
    share = share_held_out(level, validation_share)
    splits: tuple[Split, ...] = ("validation", "train")
    for split in splits:
        clips = clips_of_split(level, split, validation_share=share)
        if clips.num_windows:
            with_windows = [clip for clip in clips if clip.num_windows]
            return HeldOutClips(
                split=split,
                num_windows=clips.num_windows,
                measured=choose_evenly(with_windows, MEASURED_CLIPS),
            )
    raise CacheError(f"{level.layout.url} holds no window to show an autoencoder by; ingest more")


class ShowWindow:
    """Sets what a window's cached perceptual latents give back beside the window.

    Args:
        perceptual: The level of the latents.
        windows: Windows of the ``kl`` level that they were made from.
        originals: Names sources.
        decoder: Of the latents.
        signal_decoder: The part of it that gives KL latents.
        scale: How KL latents were scaled for the modal encoders.
    """

    def __init__(
        self,
        perceptual: CachedLevel,
        windows: ClipWindows,
        originals: Originals,
        *,
        decoder: WindowDecoder,
        signal_decoder: SignalDecoder,
        scale: LatentScale,
    ) -> None:
        self._perceptual, self._windows, self._originals = perceptual, windows, originals
        self._decoder, self._signal_decoder, self._scale = decoder, signal_decoder, scale

    def __call__(self, cached: CachedClip, window: int) -> ShownWindow:
        """Shows one window.

        Args:
            cached: Its clip, of the ``kl`` level; the perceptual level holds it too.
            window: Its number.
        """
        original = self._windows.original(cached, window)
        z_v, z_a = self._latents(cached, window)
        decoded = PlayedWindow(
            frames=self._decoder.frames(z_v[0]), sound=self._decoder.sound(z_a[0])
        )
        video, audio = self._windows.kl_means(cached, window)
        row, source = cached.rows["kl.video"], self._originals.name(cached)
        start = row.start_frame + self._windows.start_frame(cached, window)
        return ShownWindow(
            clip=cached.clip,
            window=window,
            source=source,
            label=scene_label(source),
            start_seconds=start / row.fps,
            seconds=len(video) / row.fps,
            original=(
                original if isinstance(original, Unavailable) else self._windows.render(original)
            ),
            decoded=self._windows.render(decoded),
            strip=self._strip(video, decoded),
            error=self._error(z_v, z_a, video, audio),
        )

    def _latents(self, cached: CachedClip, window: int) -> tuple[Tensor, Tensor]:
        clip = self._perceptual.clips.find(cached.clip)
        assert clip is not None
        video, audio = (
            posterior_mode(torch.from_numpy(self._perceptual.read(clip, f, window, window + 1)))
            for f in ("perceptual.video", "perceptual.audio")
        )
        return video, audio

    def _strip(self, means: Tensor, decoded: PlayedWindow) -> bytes:
        stills = still_frames(len(means))
        frames = self._decoder.kl_frames(means[stills])
        mean = self._decoder.kl_frames(means.mean(dim=0, keepdim=True))
        return strip_png([frames, mean.repeat(len(stills), axis=0), decoded.frames[stills]])

    def _error(self, z_v: Tensor, z_a: Tensor, video: Tensor, audio: Tensor) -> WindowError:
        device = self._signal_decoder.video_whitening.device
        (error,) = latent_errors(
            self._signal_decoder,
            z_v.to(device),
            z_a.to(device),
            video=self._scaled(video[None]).to(device),
            audio=self._scaled(audio).to(device),
        )
        return error

    def _scaled(self, means: Tensor) -> Tensor:
        return (means - self._scale.shift) * self._scale.factor


def windows_to_show(
    held_out: HeldOutClips, perceptual: CachedLevel
) -> tuple[tuple[CachedClip, int], ...]:
    """Clips that have perceptual latents, spread evenly, and of each its window in the middle."""
    clips = set(perceptual.clips.clip_keys())
    present = [clip for clip in held_out.measured if clip.clip in clips]
    chosen = choose_evenly(present, SHOWN_WINDOWS) if present else ()
    return tuple((clip, clip.num_windows // 2) for clip in chosen)
