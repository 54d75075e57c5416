"""Shows on probe clips how far a faster way to compute latents is from full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from latents.errors import SourceError
from latents.fields import LEVELS
from latents.mel import mel_spec
from latents.models.kl_vae_identity import Precision
from pipeline.calibration import Calibration, Way
from pipeline.job import ClipTensors, DecodeClips
from pipeline.load_stage import configure_torch
from pipeline.precision import precisions
from pipeline.recipes import encode_versions
from pipeline.settings import IngestSettings
from pipeline.sound_images import mel_images
from pipeline.source_hashing import hash_sources
from pipeline.source_rows import source_task
from pipeline.sources import HashedSource, Source

FRAMES_OF_A_CLIP = 16
SOUNDS_OF_A_CLIP = 4

Encode = Callable[[Tensor], Tensor]
"""uint8 (image, 3, height, width) to float32 moments (image, mean then logvar, h, w)."""


class Comparison:
    """Sums up how far moments made in a faster way are from full ones.

    Args:
        full: Encodes in full precision.
        fast: Encodes in the way that is to be shown.
        decode: Means (image, channel, h, w) to uint8 images, in full precision.
    """

    def __init__(self, *, full: Encode, fast: Encode, decode: Encode) -> None:
        self._full, self._fast, self._decode = full, fast, decode
        self._distance = self._norm = self._full_error = self._fast_error = 0.0
        self.num_images = 0

    def add(self, images: Tensor) -> None:
        """Encodes images (image, 3, height, width) both ways, and decodes both."""
        full, fast = (
            encode(images).chunk(2, dim=1)[0].double() for encode in (self._full, self._fast)
        )
        self._distance += float((fast - full).square().sum())
        self._norm += float(full.square().sum())
        self._full_error += self._error(images, full)
        self._fast_error += self._error(images, fast)
        self.num_images += len(images)

    def _error(self, images: Tensor, means: Tensor) -> float:
        return float((self._decode(means.float()).double() - images.double()).square().sum())

    @property
    def relative_l2(self) -> float:
        """Distance of the means over the L2 norm of the full ones, of all images together."""
        return math.sqrt(_ratio(self._distance, self._norm))

    @property
    def psnr_loss_db(self) -> float:
        """What the PSNR of all images together loses; negative where it gains."""
        ratio = _ratio(self._fast_error, self._full_error)
        return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def _ratio(number: float, of: float) -> float:
    if of == 0:
        return 1.0 if number == 0 else math.inf
    return number / of


def calibrate(
    probes: Sequence[Source],
    *,
    settings: IngestSettings,
    device: str,
    num_clips: int,
    on_clip: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """How far the way that the settings ask for is from full precision, on the same device.

    Args:
        probes: Sources, of which the first clips are taken: up to 16 frames, and the mel images of
            up to 4 windows, spread over each.
        settings: Precision, and what is encoded.
        device: Where latents are to be made.
        num_clips: At most so many clips.
        on_clip: Called with the number of clips that are done.

    Raises:
        SourceError: No probe gives a clip.
        ModelError: The KL-VAE cannot be loaded, or has no decoder.
    """
    # Here, not at the top: it brings diffusers, which takes seconds to import.
    from latents.models.kl_vae import load_kl_vae

    source, precision = settings.kl_vae.source, precisions(settings, device=device).kl
    batch_size = None if device == "cpu" else settings.run.batch_images
    full = load_kl_vae(source, device=device, batch_size=batch_size)
    fast = load_kl_vae(
        source,
        precision=precision,
        device=device,
        batch_size=batch_size,
        is_compiled=settings.kl_vae.compile,
    )
    found = Comparison(
        full=_in_precision("fp32", full.encode),
        fast=_in_precision(precision, fast.encode),
        decode=_in_precision("fp32", full.decode),
    )
    for number, images in enumerate(_images(probes, settings, num_clips=num_clips), start=1):
        for of_one_size in images:
            found.add(of_one_size)
        on_clip(number)
    if not found.num_images:
        raise SourceError("no probe gives a clip with picture and sound; name other videos")
    return Calibration(
        way=Way(
            kl_vae=full.identity.weights_digest,
            precision=precision,
            is_compiled=settings.kl_vae.compile,
            device=torch.device(device).type,
        ),
        relative_l2=found.relative_l2,
        psnr_loss_db=found.psnr_loss_db,
        num_images=found.num_images,
        versions=encode_versions(),
    )


def _in_precision(precision: Precision, compute: Encode) -> Encode:
    """With the process set as it is where latents are made."""

    def computed(inputs: Tensor) -> Tensor:
        configure_torch(precision)
        return compute(inputs)

    return computed


def _images(
    probes: Sequence[Source], settings: IngestSettings, *, num_clips: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames and mel images of each of the first clips."""
    with closing(_clips(probes, settings)) as clips:
        for clip in islice(clips, num_clips):
            yield _frames(clip), _sounds(clip, settings)


def _clips(
    probes: Sequence[Source], settings: IngestSettings
) -> Generator[ClipTensors, None, None]:
    with closing(DecodeClips(settings)) as decoder:
        for source in hash_sources(probes, {}, num_threads=1):
            if isinstance(source, HashedSource):
                task = source_task(source, skip_segments=frozenset(), fields=LEVELS["kl"])
                for event in decoder.produce(task):
                    if isinstance(event, ClipTensors):
                        yield event


def _frames(clip: ClipTensors) -> Tensor:
    frames = clip.tensors["clip.video"]
    return torch.from_numpy(np.ascontiguousarray(frames[_spread(len(frames), FRAMES_OF_A_CLIP)]))


def _sounds(clip: ClipTensors, settings: IngestSettings) -> Tensor:
    images = mel_images(
        clip.tensors["clip.audio"].astype(np.float32, copy=False),
        sample_rate=clip.sample_rate,
        grid=settings.window.grid(clip.sound_first_frame, clip.sound_stop_frame),
        clip_spec=settings.clip,
        mel=mel_spec(settings.mel.name),
    )
    return images[_spread(len(images), SOUNDS_OF_A_CLIP)]


def _spread(count: int, wanted: int) -> list[int]:
    """At most so many positions out of ``count``, from the first to the last."""
    if count <= wanted:
        return list(range(count))
    return [position * (count - 1) // (wanted - 1) for position in range(wanted)]
