"""The encode stage: a clip in, the tensors of its fields out. Engines say who runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latents.clip import Clip, ClipKey, ClipSpec, WindowGrid, WindowSpec, loudness_dbfs
from latents.errors import ClipError, ModelError, NonFiniteLatentError
from latents.fields import Level
from latents.mel import MelSpec, downmix, mel_spec, resample, window_image
from latents.models.kl_vae import Precision, load_kl_vae
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.job import ClipProducer, EncodeJob, Task

IMAGES_AT_A_TIME = 16
"""Images given to the encoder between two looks at whether to stop."""


class ImageEncoder(Protocol):
    """What the stage needs of a KL-VAE."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (image, 3, height, width) to float32 moments (image, mean then logvar, h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelSums:
    """Per channel: number of values, sum of means, sum of squared means plus variances."""

    count: int
    mean_sum: tuple[float, ...]
    square_sum: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """The tensors of one clip, by field, and what the log records beside them."""

    key: ClipKey
    segment: int
    tensors: dict[str, NDArray[Any]]
    channel_sums: dict[str, ChannelSums]
    grid: WindowGrid
    sample_rate: int
    loudness_dbfs: float
    sound_first_frame: int
    sound_stop_frame: int
    device: str
    encode_seconds: float
    num_kl_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRejected:
    """A clip or a whole source (segment None) that is given up."""

    task: Task
    segment: int | None
    stage: str
    error: ClipError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFinished:
    """All segments of a source have been encoded or rejected."""

    task: Task
    num_segments: int


StageEvent = EncodedClip | ClipRejected | SourceFinished


class StoppedError(Exception):
    """The stage was told to stop while it worked."""


class EncodeClip:
    """Stage ``Clip -> EncodedClip``.

    Each frame is encoded once, however many windows use it; sound has one image per window.

    Args:
        encoder: Encodes pictures and mel images alike. None where only the clip level is kept.
        clip_spec: The frame grid.
        window_spec: Which windows have a mel image.
        mel: How sound becomes an image.
        levels: The levels to make.
        device: Name recorded with the latents.
        stop: When set, the stage raises `StoppedError` between images.
    """

    def __init__(
        self,
        *,
        encoder: ImageEncoder | None,
        clip_spec: ClipSpec,
        window_spec: WindowSpec,
        mel: MelSpec,
        levels: Sequence[Level],
        device: str,
        stop: threading.Event | None = None,
    ) -> None:
        self._encoder = encoder
        self._clip_spec = clip_spec
        self._window_spec = window_spec
        self._mel = mel
        self._levels = tuple(levels)
        self._device = device
        self._stop = stop or threading.Event()

    def __call__(self, clip: Clip) -> EncodedClip:
        """Encodes one clip.

        Raises:
            NonFiniteLatentError: A moment is not finite in float16.
            StoppedError: The stage was told to stop.
        """
        started = time.perf_counter()
        grid = self._window_spec.grid(clip.sound_first_frame, clip.sound_stop_frame)
        tensors: dict[str, NDArray[Any]] = {}
        sums: dict[str, ChannelSums] = {}
        num_kl_images = 0
        if "clip" in self._levels:
            tensors |= {"clip.video": clip.frames, "clip.audio": clip.waveform}
        if "kl" in self._levels:
            images = {
                "kl.video": torch.from_numpy(np.ascontiguousarray(clip.frames)),
                "kl.audio": self.mel_images(clip, grid),
            }
            for field, field_images in images.items():
                tensors[field] = self._moments(clip, field, field_images)
                sums[field] = channel_sums(tensors[field])
                num_kl_images += len(field_images)
        return EncodedClip(
            key=clip.key,
            segment=clip.segment,
            tensors=tensors,
            channel_sums=sums,
            grid=grid,
            sample_rate=clip.sample_rate,
            loudness_dbfs=loudness_dbfs(clip.waveform),
            sound_first_frame=clip.sound_first_frame,
            sound_stop_frame=clip.sound_stop_frame,
            device=self._device,
            encode_seconds=time.perf_counter() - started,
            num_kl_images=num_kl_images,
        )

    def mel_images(self, clip: Clip, grid: WindowGrid) -> torch.Tensor:
        """One uint8 image (3, 256, 256) for the sound of each window, stacked."""
        mono = resample(
            downmix(torch.from_numpy(clip.waveform)), clip.sample_rate, self._mel.sample_rate
        )
        num_samples = self._clip_spec.num_samples(grid.frames, self._mel.sample_rate)
        images = []
        for start_frame in grid.starts():
            start = self._clip_spec.first_sample(start_frame, self._mel.sample_rate)
            window = mono[start : start + num_samples]
            padded = torch.nn.functional.pad(window, (0, num_samples - len(window)))
            images.append(window_image(padded, self._mel))
        return torch.stack(images)

    def _moments(self, clip: Clip, field: str, images: torch.Tensor) -> NDArray[np.float16]:
        assert self._encoder is not None
        parts = []
        for batch in torch.split(images, IMAGES_AT_A_TIME):
            if self._stop.is_set():
                raise StoppedError
            # Too large for float16 becomes infinite here, and is refused below.
            parts.append(self._encoder.encode(batch).cpu().to(torch.float16))
        moments: NDArray[np.float16] = torch.cat(parts).numpy()
        if not np.isfinite(moments).all():
            raise NonFiniteLatentError(
                clip.source,
                f"the KL-VAE gave a {field} value that float16 cannot hold "
                f"(segment {clip.segment}); try kl_vae.precision fp32",
            )
        return moments


def channel_sums(moments: NDArray[np.float16]) -> ChannelSums:
    """Sums over a tensor of moments (row, mean then logvar, height, width), in float64."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    axes = (0, 2, 3)
    return ChannelSums(
        count=mean.size // mean.shape[1],
        mean_sum=tuple(mean.sum(axis=axes).tolist()),
        square_sum=tuple((mean**2 + np.exp(logvar)).sum(axis=axes).tolist()),
    )


def configure_torch(precision: Precision) -> None:
    """Sets the process-wide switches that latents depend on, the same in every worker."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def load_stage(job: EncodeJob, stop: threading.Event | None = None) -> EncodeClip:
    """The encode stage of a job, with its model in memory.

    Raises:
        ModelError: The KL-VAE cannot be loaded, or is not the one that the recipes name.
    """
    settings = job.settings
    configure_torch(settings.kl_vae.precision)
    encoder = (
        load_kl_vae(settings.kl_vae.source, precision=settings.kl_vae.precision, device=job.device)
        if "kl" in job.levels
        else None
    )
    if encoder is not None and encoder.identity.weights_digest != job.weights_digest:
        raise ModelError(
            f"{settings.kl_vae.source}: these weights ({encoder.identity.weights_digest[:12]}) are "
            f"not those the run began with ({job.weights_digest[:12]}): they changed meanwhile, or "
            "another machine has others under this name. Make them equal and run again"
        )
    return EncodeClip(
        encoder=encoder,
        clip_spec=settings.clip,
        window_spec=settings.window,
        mel=mel_spec(settings.mel.name),
        levels=job.levels,
        device=job.device,
        stop=stop,
    )


def work_on(task: Task, producer: ClipProducer, encode: EncodeClip) -> Iterator[StageEvent]:
    """All stages for one task, in order: what an engine in process does."""
    for event in producer.produce(task):
        if isinstance(event, SegmentRejected):
            yield ClipRejected(task=task, segment=event.segment, stage="decode", error=event.error)
        elif isinstance(event, SourceDecoded):
            yield SourceFinished(task=task, num_segments=event.num_segments)
        else:
            try:
                yield encode(event)
            except ClipError as error:
                yield ClipRejected(task=task, segment=event.segment, stage="encode", error=error)
