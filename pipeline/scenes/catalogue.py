"""The nine classes of sounding scenes, and the one way to make a scene."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from pipeline.scenes.bird import draw_birds
from pipeline.scenes.bouncing_ball import draw_bouncing_balls
from pipeline.scenes.fireworks import draw_fireworks
from pipeline.scenes.pendulum import draw_pendulum
from pipeline.scenes.rain import draw_rain
from pipeline.scenes.scene import Scene, Subject
from pipeline.scenes.siren import draw_siren
from pipeline.scenes.surf import draw_surf
from pipeline.scenes.train import draw_train
from pipeline.scenes.xylophone import draw_xylophone

_SUBJECTS: dict[str, Callable[[np.random.Generator, float], Subject]] = {
    "bouncing_ball": draw_bouncing_balls,
    "rain": draw_rain,
    "pendulum": draw_pendulum,
    "fireworks": draw_fireworks,
    "siren": draw_siren,
    "surf": draw_surf,
    "xylophone": draw_xylophone,
    "train": draw_train,
    "bird": draw_birds,
}

SCENE_LABELS: tuple[str, ...] = tuple(_SUBJECTS)
"""The classes; scene `index` is of class ``SCENE_LABELS[index % 9]``."""


def make_scene(seed: int, index: int, *, seconds: float) -> Scene:
    """Scene `index` of the data set that belongs to `seed`.

    Args:
        seed: Names the data set, >= 0.
        index: Number of the scene, >= 0. Every block of nine holds all classes.
        seconds: Length, > 0.

    Raises:
        ValueError: A negative seed or index, or a length that is not positive.
    """
    if seed < 0 or index < 0 or not 0 < seconds < float("inf"):
        raise ValueError(
            f"scene of seed {seed}, index {index}, {seconds} s: seed and index must be >= 0 "
            "and seconds positive"
        )
    label = SCENE_LABELS[index % len(SCENE_LABELS)]
    subject = _SUBJECTS[label](np.random.default_rng([seed, index]), seconds)
    heard = (event for event in subject.events() if 0 <= event.time_seconds < seconds)
    events = tuple(sorted(heard, key=lambda event: event.time_seconds))
    return Scene(
        label=label, seed=seed, index=index, seconds=seconds, events=events, subject=subject
    )


def split_of(seed: int, index: int) -> Literal["train", "validation", "test"]:
    """The split of a scene, about 80, 10 and 10 of a hundred; it never depends on the others."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8, key=b"scene split").digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < 0.8:
        return "train"
    return "validation" if share < 0.9 else "test"
