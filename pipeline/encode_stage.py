"""The encode stage: a clip in, the tensors of its fields out. Engines say who runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latents.clip import WindowGrid
from latents.errors import NonFiniteLatentError, OutOfMemoryError, TooShortError
from latents.fields import FIELDS, LEVELS, to_compute
from latents.mel import mel_spec
from pipeline.encoded import EncodedClip, channel_sums
from pipeline.job import ClipTensors, LatentScale
from pipeline.settings import IngestSettings
from pipeline.sound_images import mel_images

IMAGES_AT_A_TIME = 16
"""Images given to an encoder on the CPU between two looks at whether to stop."""
BATCHES_AT_A_TIME = 8
"""Batches given to one on a GPU: within them copies overlap the work."""

KL_FIELDS = frozenset(LEVELS["kl"])
PERCEPTUAL_FIELDS = frozenset(LEVELS["perceptual"])

Moments = NDArray[np.float16]
"""(frame or window, mean then logvar, height, width)."""
Tensors = Mapping[str, NDArray[Any]]
Encode = Callable[[torch.Tensor], torch.Tensor]


class ImageEncoder(Protocol):
    """What the stage needs of a KL-VAE."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (image, 3, height, width) to float32 moments (image, mean then logvar, h, w)."""


class WindowEncoder(Protocol):
    """What the stage needs of modal encoders; KL latents come as scaled means."""

    def encode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """(window, frame, 4, h, w) to float32 moments (window, mean then logvar, h / 2, w / 2)."""

    def encode_audio(self, latents: torch.Tensor) -> torch.Tensor:
        """(window, 4, h, w) to float32 moments (window, mean then logvar, h / 4, w / 4)."""


class StoppedError(Exception):
    """The stage was told to stop while it worked."""


class EncodeClip:
    """Stage ``ClipTensors -> EncodedClip``: the fields asked for, from those at hand.

    Each frame is encoded once, however many windows use it; sound has one image per window.

    Args:
        kl_vae: Encodes pictures and mel images alike. None where no task needs it.
        modal: Encodes windows of KL latents. None where no task needs it.
        latent_scale: How KL latents are scaled for the modal encoders.
        settings: The frame grid, the windows, and how sound becomes an image.
        device: Name recorded with the latents.
        stop: When set, the stage raises `StoppedError` between images.
    """

    def __init__(
        self,
        *,
        kl_vae: ImageEncoder | None,
        modal: WindowEncoder | None,
        latent_scale: LatentScale,
        settings: IngestSettings,
        device: str,
        stop: threading.Event | None = None,
    ) -> None:
        self._kl_vae = kl_vae
        self._modal = modal
        self._latent_scale = latent_scale
        self._clip_spec, self._window_spec = settings.clip, settings.window
        self._mel = mel_spec(settings.mel.name)
        self._device, self._batch_images = device, settings.run.batch_images
        self._at_a_time = (
            IMAGES_AT_A_TIME if device == "cpu" else BATCHES_AT_A_TIME * self._batch_images
        )
        self._stop = stop or threading.Event()
        self._make: dict[str, Callable[[ClipTensors, Tensors, WindowGrid], Moments]] = {
            "kl.video": self._kl_video,
            "kl.audio": self._kl_audio,
            "perceptual.video": self._perceptual_video,
            "perceptual.audio": self._perceptual_audio,
        }

    def __call__(self, clip: ClipTensors) -> EncodedClip:
        """Makes the fields of one clip.

        Raises:
            TooShortError: No window fits beside the sound.
            NonFiniteLatentError: A moment is not finite in float16.
            OutOfMemoryError: The GPU's memory does not hold a batch.
            StoppedError: The stage was told to stop.
        """
        started = time.perf_counter()
        grid = self._window_spec.grid(clip.sound_first_frame, clip.sound_stop_frame)
        tensors: dict[str, NDArray[Any]] = dict(clip.tensors)
        computed = to_compute(clip.fields, clip.tensors)
        if not grid.num_windows and any(FIELDS[field].has_row_per_window for field in computed):
            raise TooShortError(clip.source, self._too_short(clip))
        for field in computed:
            tensors[field] = _finite(self._make[field](clip, tensors, grid), clip, field)
        return EncodedClip(
            key=clip.key,
            segment=clip.segment,
            tensors={field: tensors[field] for field in clip.fields},
            channel_sums={
                field: channel_sums(tensors[field]) for field in computed if field in clip.fields
            },
            grid=grid,
            sample_rate=clip.sample_rate,
            loudness_dbfs=clip.loudness_dbfs,
            sound_first_frame=clip.sound_first_frame,
            sound_stop_frame=clip.sound_stop_frame,
            device=self._device,
            encode_seconds=time.perf_counter() - started,
            num_kl_images=sum(len(tensors[field]) for field in computed if field in KL_FIELDS),
        )

    def _too_short(self, clip: ClipTensors) -> str:
        num_frames = clip.sound_stop_frame - clip.sound_first_frame
        window = self._window_spec
        return (
            f"picture and sound lie side by side for {num_frames} frames (segment {clip.segment}); "
            f"a window is {window.frames} frames and begins on a multiple of {window.stride}"
        )

    def _kl_video(self, clip: ClipTensors, tensors: Tensors, grid: WindowGrid) -> Moments:
        frames = np.ascontiguousarray(tensors["clip.video"])
        return self._encode_images(torch.from_numpy(frames))

    def _kl_audio(self, clip: ClipTensors, tensors: Tensors, grid: WindowGrid) -> Moments:
        waveform = tensors["clip.audio"].astype(np.float32, copy=False)
        images = mel_images(
            waveform,
            sample_rate=clip.sample_rate,
            grid=grid,
            clip_spec=self._clip_spec,
            mel=self._mel,
        )
        return self._encode_images(images)

    def _perceptual_video(self, clip: ClipTensors, tensors: Tensors, grid: WindowGrid) -> Moments:
        assert self._modal is not None
        latents = self._scaled_means(tensors["kl.video"])
        return self._in_parts(
            [latents[start : start + grid.frames] for start in grid.starts()],
            self._modal.encode_video,
        )

    def _perceptual_audio(self, clip: ClipTensors, tensors: Tensors, grid: WindowGrid) -> Moments:
        assert self._modal is not None
        latents = self._scaled_means(tensors["kl.audio"])
        return self._in_parts(latents, self._modal.encode_audio)

    def _scaled_means(self, moments: Moments) -> torch.Tensor:
        """What the modal encoders read: posterior means, scaled, in float32."""
        mean = torch.from_numpy(np.ascontiguousarray(moments)).chunk(2, dim=1)[0].float()
        return (mean - self._latent_scale.shift) * self._latent_scale.factor

    def probe(self) -> None:
        """Encodes one batch of each shape of pictures that is to come.

        Raises:
            OutOfMemoryError: The GPU's memory does not hold a batch.
        """
        if self._kl_vae is None:
            return
        for size in sorted({self._clip_spec.size, self._mel.image_size}):
            self._encode_part(torch.zeros(1, 3, size, size, dtype=torch.uint8), self._kl_vae.encode)

    def _encode_images(self, images: torch.Tensor) -> Moments:
        assert self._kl_vae is not None
        return self._in_parts(images, self._kl_vae.encode)

    def _in_parts(self, inputs: torch.Tensor | Sequence[torch.Tensor], encode: Encode) -> Moments:
        """Moments in float16, encoded a few at a time so that a request to stop is seen."""
        parts = []
        for start in range(0, len(inputs), self._at_a_time):
            if self._stop.is_set():
                raise StoppedError
            part = inputs[start : start + self._at_a_time]
            batch = part if isinstance(part, torch.Tensor) else torch.stack(list(part))
            # Too large for float16 becomes infinite here, and is refused by the caller.
            parts.append(self._encode_part(batch, encode).cpu().to(torch.float16))
        moments: Moments = torch.cat(parts).numpy()
        return moments

    def _encode_part(self, batch: torch.Tensor, encode: Encode) -> torch.Tensor:
        try:
            return encode(batch)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(_too_much(self._device, self._batch_images)) from error


def _too_much(device: str, batch_images: int) -> str:
    remedy = (
        f"lower run.batch_images (--set run.batch_images={batch_images // 2})"
        if batch_images > 1
        else "encode smaller pictures (clip.size), or on another device (run.device)"
    )
    return (
        f"{device}: its memory does not hold {batch_images} pictures or windows at a time beside "
        f"the model and what other programs hold there; {remedy}. What is committed stays"
    )


def _finite(moments: Moments, clip: ClipTensors, field: str) -> Moments:
    if not np.isfinite(moments).all():
        encoder = "kl_vae" if field in KL_FIELDS else "autoencoder"
        raise NonFiniteLatentError(
            clip.source,
            f"the encoder gave a {field} value that float16 cannot hold (segment {clip.segment}); "
            f"try {encoder}.precision fp32",
        )
    return moments
