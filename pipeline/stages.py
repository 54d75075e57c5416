"""The encode stage: a clip in, the tensors of its fields out. Engines say who runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latents.clip import ClipKey, ClipSpec, WindowGrid
from latents.errors import ClipError, ConfigError, ModelError, NonFiniteLatentError, TooShortError
from latents.fields import FIELDS, LEVELS, to_compute
from latents.mel import MelSpec, downmix, mel_spec, resample, window_image
from latents.models.kl_vae import Precision, load_kl_vae
from latents.models.modal_encoder_files import load_modal_encoders
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.job import (
    ClipProducer,
    ClipTensors,
    EncodeJob,
    LatentScale,
    SourceUnread,
    Task,
)
from pipeline.settings import IngestSettings

IMAGES_AT_A_TIME = 16
"""Images given to the encoder between two looks at whether to stop."""


KL_FIELDS = frozenset(LEVELS["kl"])
PERCEPTUAL_FIELDS = frozenset(LEVELS["perceptual"])

Moments = NDArray[np.float16]
"""(frame or window, mean then logvar, height, width)."""
Tensors = Mapping[str, NDArray[Any]]


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
        self._device = device
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
        return self._in_parts(list(latents), self._modal.encode_audio)

    def _scaled_means(self, moments: Moments) -> torch.Tensor:
        """What the modal encoders read: posterior means, scaled, in float32."""
        mean = torch.from_numpy(np.ascontiguousarray(moments)).chunk(2, dim=1)[0].float()
        return (mean - self._latent_scale.shift) * self._latent_scale.factor

    def _encode_images(self, images: torch.Tensor) -> Moments:
        assert self._kl_vae is not None
        return self._in_parts(list(images), self._kl_vae.encode)

    def _in_parts(
        self, inputs: Sequence[torch.Tensor], encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> Moments:
        """Moments in float16, encoded a few at a time so that a request to stop is seen."""
        parts = []
        for start in range(0, len(inputs), IMAGES_AT_A_TIME):
            if self._stop.is_set():
                raise StoppedError
            batch = torch.stack(list(inputs[start : start + IMAGES_AT_A_TIME]))
            # Too large for float16 becomes infinite here, and is refused by the caller.
            parts.append(encode(batch).cpu().to(torch.float16))
        moments: Moments = torch.cat(parts).numpy()
        return moments


def _finite(moments: Moments, clip: ClipTensors, field: str) -> Moments:
    if not np.isfinite(moments).all():
        encoder = "kl_vae" if field in KL_FIELDS else "autoencoder"
        raise NonFiniteLatentError(
            clip.source,
            f"the encoder gave a {field} value that float16 cannot hold (segment {clip.segment}); "
            f"try {encoder}.precision fp32",
        )
    return moments


def mel_images(
    waveform: NDArray[np.float32],
    *,
    sample_rate: int,
    grid: WindowGrid,
    clip_spec: ClipSpec,
    mel: MelSpec,
) -> torch.Tensor:
    """One uint8 image (3, 256, 256) for the sound of each window, stacked.

    Args:
        waveform: Of a clip, (channel, sample).
        sample_rate: Hz.
        grid: The clip's windows.
        clip_spec: The frame grid.
        mel: How sound becomes an image.
    """
    mono = resample(downmix(torch.from_numpy(waveform)), sample_rate, mel.sample_rate)
    num_samples = clip_spec.num_samples(grid.frames, mel.sample_rate)
    images = []
    for start_frame in grid.starts():
        start = clip_spec.first_sample(start_frame, mel.sample_rate)
        window = mono[start : start + num_samples]
        padded = torch.nn.functional.pad(window, (0, num_samples - len(window)))
        images.append(window_image(padded, mel))
    return torch.stack(images)


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
    """The encode stage of a job, with the models it needs in memory.

    Raises:
        ModelError: A model cannot be loaded, or is not the one that the recipes name.
    """
    configure_torch(_precision(job))
    return EncodeClip(
        kl_vae=_load_kl_vae(job) if job.computed & KL_FIELDS else None,
        modal=_load_modal(job) if job.computed & PERCEPTUAL_FIELDS else None,
        latent_scale=job.latent_scale,
        settings=job.settings,
        device=job.device,
        stop=stop,
    )


def _precision(job: EncodeJob) -> Precision:
    """What torch is to be set to, for the whole process, so that each encoder gets its own.

    Raises:
        ConfigError: One encoder wants TF32 and another full precision.
    """
    wanted: set[Precision] = set()
    if job.computed & KL_FIELDS:
        wanted.add(job.settings.kl_vae.precision)
    if job.computed & PERCEPTUAL_FIELDS:
        wanted.add(job.settings.autoencoder.precision)
    if {"tf32", "fp32"} <= wanted:
        raise ConfigError(
            "kl_vae.precision and autoencoder.precision are tf32 and fp32, which one process "
            "cannot do at once; make them equal, or make the levels in two runs (--levels)"
        )
    return "tf32" if "tf32" in wanted else "fp32"


def _load_kl_vae(job: EncodeJob) -> ImageEncoder:
    settings = job.settings.kl_vae
    encoder = load_kl_vae(settings.source, precision=settings.precision, device=job.device)
    _require_weights(settings.source, "--kl-vae", encoder.identity.weights_digest, job.kl_vae)
    return encoder


def _load_modal(job: EncodeJob) -> WindowEncoder:
    settings = job.settings.autoencoder
    assert job.modal_encoders is not None
    if not settings.source:
        raise ConfigError(
            "the perceptual level is made by modal encoders, and none were named; name the folder "
            f"of those with weights {job.modal_encoders[0][:12]} with --autoencoder, or leave the "
            "level out with --levels kl"
        )
    encoders = load_modal_encoders(settings.source, precision=settings.precision, device=job.device)
    identity = encoders.identity
    found = identity.video.weights_digest, identity.audio.weights_digest
    for one, wanted in zip(found, job.modal_encoders, strict=True):
        _require_weights(settings.source, "--autoencoder", one, wanted)
    return encoders


def _require_weights(source: str, option: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{source}: these weights ({found[:12]}) are not those that the latents are to be made "
            f"with ({wanted[:12]}). Name the right ones with {option}; if they changed during the "
            "run, or another machine has others under this name, make them equal and run again"
        )


def work_on(task: Task, producer: ClipProducer, encode: EncodeClip) -> Iterator[StageEvent]:
    """All stages for one task, in order: what an engine in process does."""
    for event in producer.produce(task):
        if isinstance(event, SegmentRejected):
            yield ClipRejected(task=task, segment=event.segment, stage="decode", error=event.error)
        elif isinstance(event, SourceUnread):
            yield ClipRejected(task=task, segment=None, stage="read", error=event.error)
        elif isinstance(event, SourceDecoded):
            yield SourceFinished(task=task, num_segments=event.num_segments)
        else:
            try:
                yield encode(event)
            except ClipError as error:
                yield ClipRejected(task=task, segment=event.segment, stage="encode", error=error)
