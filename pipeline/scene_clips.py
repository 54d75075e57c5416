"""Procedural scenes as sources of clips: rendered on the frame grid, no file, no decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latents.clip import ClipSpec
from pipeline.scenes.catalogue import make_scene
from pipeline.scenes.scene import RENDERER_VERSION
from pipeline.segments import Frame

SCENE_SAMPLE_RATE = 22050
"""Hz."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRef:
    """One scene of the data set that belongs to a seed."""

    seed: int
    index: int
    seconds: float
    """Length."""


class SceneSound:
    """The sound of a scene."""

    def __init__(self, waveform: NDArray[np.float32]) -> None:
        self._waveform = waveform
        self.sample_rate = SCENE_SAMPLE_RATE

    def read(
        self, first_sample: int, num_samples: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Sound (2, sample), zero past the scene's end, and where there is some (sample)."""
        part = self._waveform[:, first_sample : first_sample + num_samples]
        missing = num_samples - part.shape[1]
        present = np.arange(num_samples) < part.shape[1]
        return np.pad(part, ((0, 0), (0, missing))), present


def scene_digest(ref: SceneRef) -> str:
    """SHA-256, 64 hex digits, of all that a scene's pictures and sound follow from."""
    description = {
        "index": ref.index,
        "renderer": RENDERER_VERSION,
        "seconds": str(float(ref.seconds)),
        "seed": ref.seed,
    }
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def render_scene(ref: SceneRef, clip_spec: ClipSpec) -> tuple[Iterator[Frame], SceneSound]:
    """The frames of a scene, rendered as they are asked for, and its sound."""
    scene = make_scene(ref.seed, ref.index, seconds=ref.seconds)
    size = clip_spec.size
    pictures = scene.frames(fps=clip_spec.fps, height=size, width=size)
    frames = (np.ascontiguousarray(picture.transpose(2, 0, 1)) for picture in pictures)
    return frames, SceneSound(scene.waveform(SCENE_SAMPLE_RATE))
