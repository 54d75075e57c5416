"""The windows that samples go by, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.sampling.decode import Sound
from latents.errors import ConfigError
from latents.posterior import posterior_mode
from pipeline.decode import SoundPolicy
from training.diffusion.pair import Latents
from training.dit.config import DiTConfig

GivingTask = Literal["a2v", "v2a"]
"""The tasks with something given: sound, or pictures."""
GIVING_TASKS: tuple[GivingTask, ...] = get_args(GivingTask)

GIVEN_FIELDS: dict[GivingTask, str] = {"a2v": "perceptual.audio", "v2a": "perceptual.video"}
"""What is read of a window."""

SILENT_BELOW_DBFS = SoundPolicy().silent_below_dbfs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GivenWindow:
    """A window that a sample goes by, and what there is of it to be seen or heard."""

    name: str
    """For people."""
    digest: str
    """What it is: of a file or a cache, of which clip, and which window."""
    latents: Latents
    """Of one window; zeros for what is sampled."""
    frames: NDArray[np.uint8] | None = None
    """Its own pictures, RGB (frame, 3, height, width)."""
    sound: Sound | None = None
    """Its own sound."""
    kl_means: Tensor | None = None
    """KL means of its frames (frame, channel, row, column), or of its mel image, the first axis 1:
    where there are no pictures and no sound, they show it better than its latents."""


def given_latents(task: GivingTask, moments: NDArray[Any], config: DiTConfig) -> Latents:
    """Means of what is given, one window, beside zeros for what is sampled."""
    mean = posterior_mode(torch.from_numpy(moments))
    if task == "a2v":
        return Latents(video=torch.zeros(1, *config.video_shape), audio=mean)
    return Latents(video=mean, audio=torch.zeros(1, *config.audio_shape))


def require_sound(name: str, loudness_dbfs: float) -> None:
    """Refuses silence as something to go by.

    Raises:
        ConfigError: It is softer than `SILENT_BELOW_DBFS`.
    """
    if loudness_dbfs < SILENT_BELOW_DBFS:
        raise ConfigError(
            f"{name}: its sound has {loudness_dbfs:.0f} dBFS, under the {SILENT_BELOW_DBFS} that "
            "count as silence, and a2v goes by sound; name another"
        )
