"""Synthesise a data set: sounding scenes as mp4 files, with labels, splits and event times."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latents.errors import ConfigError
from pipeline.scenes.catalogue import SCENE_LABELS, make_scene, split_of
from pipeline.scenes.scene import RENDERER_VERSION, Scene
from pipeline.write_video import AAC_SAMPLE_RATES, write_video

PARAMETERS_NAME = "synthesis.json"
CLIPS_NAME = "clips.jsonl"
_CLIP_NAME = re.compile(r"clip_(\d{5,})_[a-z_]+\.mp4")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Synthesis:
    """All that decides a clip's bytes, beside its index; kept in the folder of the clips."""

    seed: int
    seconds: float
    fps: int
    height: int
    width: int
    sample_rate: int
    renderer_version: int = RENDERER_VERSION

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be >= 0")
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds is {self.seconds}; it must be above 0 and at most 600")
        if not 1 <= self.fps <= 120:
            raise ConfigError(f"fps is {self.fps}; it must be between 1 and 120")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if not 16 <= pixels <= 4096 or pixels % 2:
                raise ConfigError(f"{name} is {pixels}; it must be even, between 16 and 4096")
        if self.sample_rate not in AAC_SAMPLE_RATES:
            raise ConfigError(
                f"sample_rate is {self.sample_rate}; it must be one of {AAC_SAMPLE_RATES}"
            )


def _report_nothing(done: int, total: int) -> None:
    """The default listener."""


def synthesise(
    out: Path,
    *,
    num_clips: int,
    seconds: float,
    seed: int,
    fps: int = 20,
    height: int = 256,
    width: int = 256,
    sample_rate: int = 44100,
    on_clip: Callable[[int, int], None] = _report_nothing,
) -> None:
    """Write ``out/clip_00000_<label>.mp4`` and so on, then ``out/clips.jsonl``.

    Clip i depends on the parameters and on i only, so an interrupted run goes on where it
    stopped and a finished one can be extended; complete files are kept. ``clips.jsonl`` has one
    object a line: file, label, split, seconds, fps, seed, index, events. It is written last.

    Args:
        out: Folder to write to; made if missing.
        num_clips: Clips the folder shall hold; every block of nine has all classes.
        seconds: Length of each clip.
        seed: Names the data set.
        fps: Frames per second.
        height: Pixels, even.
        width: Pixels, even.
        sample_rate: Hz, one that AAC has.
        on_clip: Called with the clips done and their total, after each.

    Raises:
        ConfigError: A parameter out of its range; a folder that cannot be written, that holds
            other files, another synthesis, or more clips than are asked for.
    """
    if num_clips < 1:
        raise ConfigError(f"num_clips is {num_clips}; it must be >= 1")
    synthesis = _Synthesis(
        seed=seed, seconds=seconds, fps=fps, height=height, width=width, sample_rate=sample_rate
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, synthesis, num_clips)
        lines = []
        for index in range(num_clips):
            scene = make_scene(seed, index, seconds=seconds)
            name = _clip_name(index)
            if not (out / name).exists():
                _render(scene, out / name, synthesis)
            lines.append(json.dumps(_describe(scene, name, fps)) + "\n")
            on_clip(index + 1, num_clips)
        _write_aside(out / CLIPS_NAME, "".join(lines))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{out}: cannot write the clips there ({reason}); choose another folder, or make "
            "room and run again to go on"
        ) from error


def _clip_name(index: int) -> str:
    return f"clip_{index:05d}_{SCENE_LABELS[index % len(SCENE_LABELS)]}.mp4"


def _render(scene: Scene, path: Path, synthesis: _Synthesis) -> None:
    write_video(
        path,
        scene.frames(fps=synthesis.fps, height=synthesis.height, width=synthesis.width),
        fps=synthesis.fps,
        waveform=scene.waveform(synthesis.sample_rate),
        sample_rate=synthesis.sample_rate,
    )


def _describe(scene: Scene, name: str, fps: int) -> dict[str, Any]:
    """A line of ``clips.jsonl``."""
    return {
        "file": name,
        "label": scene.label,
        "split": split_of(scene.seed, scene.index),
        "seconds": scene.seconds,
        "fps": fps,
        "seed": scene.seed,
        "index": scene.index,
        "events": [asdict(event) for event in scene.events],
    }


def _claim(out: Path, synthesis: _Synthesis, num_clips: int) -> None:
    """Refuse a folder that is in other use, else record in it what is made there."""
    names = sorted(entry.name for entry in out.iterdir())
    if PARAMETERS_NAME in names:
        _check_parameters(out / PARAMETERS_NAME, synthesis)
    for name in names:
        whole_name = name.removesuffix(".part")  # what an interrupted run has left
        clip = _CLIP_NAME.fullmatch(whole_name)
        recorded = PARAMETERS_NAME in names and (clip or whole_name == CLIPS_NAME)
        if not recorded and whole_name != PARAMETERS_NAME:
            raise ConfigError(
                f"{out}: holds {name!r}, which no synthesis recorded there; choose an empty folder"
            )
        if clip and int(clip[1]) >= num_clips:
            raise ConfigError(
                f"{out}: holds {name!r}, but only {num_clips} clips are asked for; ask for more, "
                "or choose an empty folder"
            )
    if PARAMETERS_NAME not in names:
        _write_aside(out / PARAMETERS_NAME, json.dumps(asdict(synthesis), indent=2) + "\n")


def _check_parameters(path: Path, synthesis: _Synthesis) -> None:
    wanted = asdict(synthesis)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); choose an empty folder") from error
    if not isinstance(found, dict) or found != wanted:
        known = found if isinstance(found, dict) else {}
        differences = ", ".join(
            f"{name} is {known.get(name)}, asked for is {value}"
            for name, value in wanted.items()
            if known.get(name) != value
        )
        raise ConfigError(
            f"{path.parent}: holds another synthesis ({differences or 'unknown parameters'}); "
            "choose an empty folder"
        )


def _write_aside(path: Path, text: str) -> None:
    """Write a text file that is whole or does not exist."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
