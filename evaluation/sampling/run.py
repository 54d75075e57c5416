"""Samples of a trained DiT as files: mp4 with H.264 pictures and AAC sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.sampling.conditions import GivenWindow
from evaluation.sampling.decode import Sound, WindowDecoder, playable
from evaluation.sampling.record import RecordedCondition, claim
from latents.durable import reason
from latents.errors import ConfigError, ModelError
from pipeline.write_video import write_video
from training.diffusion.pair import Latents
from training.diffusion.tasks import Task
from training.dit.files import TrainedDiT
from training.dit.sample import SamplingSettings, sample_latents


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """Which samples are wanted."""

    task: Task
    num: int
    """Samples 0 ... num - 1."""
    seed: int = 0
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    batch_size: int = 1
    """Samples at a time on a GPU. On the CPU it is always one, so that equal samples are equal
    bytes."""

    @property
    def stem(self) -> str:
        """How the names of the files begin."""
        return f"{self.task}_s{self.seed}"

    def path(self, out: Path, index: int) -> Path:
        """The file of a sample."""
        return out / f"{self.stem}_{index:05d}.mp4"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenSamples:
    """What a run came to."""

    files: tuple[Path, ...]
    """All that were asked for, by number."""
    num_kept: int
    """Of these, how many were there already."""


def require_possible(request: SampleRequest, trained: TrainedDiT, *, num_given: int) -> None:
    """Refuses what cannot be sampled, before anything is loaded for it.

    Args:
        request: What is wanted.
        trained: The DiT.
        num_given: Windows to go by.

    Raises:
        ConfigError: A number is out of its range, or task and windows do not go together.
    """
    settings, most = request.settings, trained.diffusion.num_timesteps
    if request.num < 1 or request.batch_size < 1:
        raise ConfigError(
            f"{request.num} samples, {request.batch_size} at a time, were asked for; both must be "
            ">= 1"
        )
    if not 1 <= settings.num_steps <= most:
        raise ConfigError(f"steps is {settings.num_steps}; this DiT samples in 1 ... {most} steps")
    if not 0 <= settings.eta <= 1:
        raise ConfigError(f"eta is {settings.eta}; it must be between 0 and 1")
    is_guided = settings.scales.video != 1 or settings.scales.audio != 1
    if request.task == "svg" and num_given:
        raise ConfigError(
            f"svg samples from nothing, but {num_given} windows were given; ask for a2v or v2a, or "
            "give none"
        )
    if request.task == "svg" and is_guided and settings.guidance == "condition":
        raise ConfigError(
            "guidance by condition moves away from what is sampled without it, and svg has none; "
            "use guidance by context, or ask for a2v or v2a"
        )
    if request.task != "svg" and num_given != request.num:
        raise ConfigError(
            f"{request.task} gives each sample a window to go by: {request.num} samples were asked "
            f"for, and {num_given} windows given. Give as many, by --condition FILE... or by "
            "--cache C --clip KEY[:WINDOW]"
        )


def write_samples(
    trained: TrainedDiT,
    decoder: WindowDecoder,
    out: Path,
    *,
    request: SampleRequest,
    given: Sequence[GivenWindow],
    made_by: Mapping[str, Any],
    on_sample: Callable[[int], None] = lambda done: None,
) -> WrittenSamples:
    """Writes ``out/<task>_s<seed>_<index>.mp4``, each as a whole; those that are there are kept.

    A sample depends on the models, the settings, the seed, its number and the window it goes by.
    For a2v its sound is that window's, for v2a its pictures are: its own where they are at hand,
    else decoded from the best latents that are.

    Args:
        trained: The DiT, on the device to use.
        decoder: Of its latents.
        out: A folder; made if missing.
        request: Which samples.
        given: For a2v and v2a, the window that each sample goes by.
        made_by: What the models are, as JSON values; a folder of samples by others is refused.
        on_sample: Told after each how many are there.

    Raises:
        ConfigError: See `require_possible`; or the folder cannot be written, or holds samples that
            were made otherwise.
        ModelError: The DiT gave values that are not finite.
    """
    require_possible(request, trained, num_given=len(given))
    files = tuple(request.path(out, index) for index in range(request.num))
    try:
        claim(
            out,
            request.stem,
            made_by={**made_by, **_canonical(request.settings)},
            conditions=[RecordedCondition(name=one.name, digest=one.digest) for one in given],
        )
        missing = [index for index, path in enumerate(files) if not path.exists()]
        num_kept = len(files) - len(missing)
        on_sample(num_kept)
        for done, (index, latents) in enumerate(_samples(trained, request, given, missing), 1):
            window = given[index] if given else None
            frames = _frames(request.task, latents, window, decoder)
            sound = _sound(request.task, latents, window, decoder)
            write_video(
                files[index],
                (np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in frames),
                fps=decoder.fps,
                waveform=sound.waveform,
                sample_rate=sound.sample_rate,
            )
            on_sample(num_kept + done)
    except OSError as error:
        raise ConfigError(
            f"{out}: the samples cannot be written there ({reason(error)}); choose another folder, "
            "or make room and run again to go on"
        ) from error
    return WrittenSamples(files=files, num_kept=num_kept)


def _canonical(settings: SamplingSettings) -> dict[str, Any]:
    """What a sample's bytes depend on; without guidance its kind says nothing."""
    values = asdict(settings)
    if set(values["scales"].values()) == {1.0}:
        del values["guidance"]
    return values


def _samples(
    trained: TrainedDiT,
    request: SampleRequest,
    given: Sequence[GivenWindow],
    indices: Sequence[int],
) -> Iterator[tuple[int, Latents]]:
    """Numbers of samples, and the latents of each, sampled a few at a time."""
    is_cpu = next(trained.model.parameters()).device.type == "cpu"
    size = 1 if is_cpu else request.batch_size
    for start in range(0, len(indices), size):
        some = indices[start : start + size]
        sampled = sample_latents(
            trained,
            request.task,
            seed=request.seed,
            indices=some,
            given=_stacked([given[index].latents for index in some]) if given else None,
            settings=request.settings,
            batch_size=size,
        )
        for index, video, audio in zip(some, sampled.video, sampled.audio, strict=True):
            if not (video.isfinite().all() and audio.isfinite().all()):
                raise ModelError(
                    f"sample {index} holds values that are not finite; lower --guidance, or train "
                    "the DiT with a lower learning rate"
                )
            yield index, Latents(video=video[None], audio=audio[None])


def _stacked(latents: Sequence[Latents]) -> Latents:
    return Latents(
        video=torch.cat([one.video for one in latents]),
        audio=torch.cat([one.audio for one in latents]),
    )


def _frames(
    task: Task, sampled: Latents, given: GivenWindow | None, decoder: WindowDecoder
) -> NDArray[np.uint8]:
    """Pictures of a sample, (frame, 3, height, width)."""
    if task != "v2a" or given is None:
        return decoder.frames(sampled.video[0])
    if given.frames is not None:
        return given.frames
    if given.kl_means is not None:
        return decoder.kl_frames(given.kl_means)
    return decoder.frames(given.latents.video[0])


def _sound(
    task: Task, sampled: Latents, given: GivenWindow | None, decoder: WindowDecoder
) -> Sound:
    """Sound of a sample, as it is written."""
    if task != "a2v" or given is None:
        return playable(decoder.sound(sampled.audio[0]))
    if given.sound is not None:
        return playable(given.sound)
    if given.kl_means is not None:
        return playable(decoder.kl_sound(given.kl_means))
    return playable(decoder.sound(given.latents.audio[0]))
