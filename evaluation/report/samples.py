"""Samples as a report shows them: each video, and beside it the window that it goes by."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from evaluation.report.compare import Rendition
from evaluation.report.contents import scene_label
from evaluation.report.media import read_mp4, still_frames, strip_png
from evaluation.report.played import ClipWindows
from evaluation.sampling.decode import Sound
from latents.cache.reader import CachedLevel
from latents.durable import reason
from latents.errors import ConfigError
from pipeline.originals import Originals, Unavailable
from training.diffusion.tasks import TASKS, Task

SHOWN_SAMPLES = 8
"""Of each task."""
_NAME = re.compile(r"((svg|a2v|v2a)_s(-?\d+))_(\d+)\.mp4")
_CACHED = "cached "
"""How the digest of a condition begins that is a window of a cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFile:
    """A sample on disk, and what is on record of it."""

    path: Path
    record: Path
    task: Task
    seed: int
    index: int
    made_by: str | None
    """Digest of the DiT's files."""
    given: str | None
    """Name of what it goes by."""
    given_digest: str | None
    """What that is: of a window of a cache, or of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenShown:
    """What a sample goes by."""

    name: str
    """URI of a source, or a file."""
    label: str | None
    window: Rendition | Unavailable
    is_decoded: bool
    """Whether it is shown from its KL latents, where the source is not to be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """A sample."""

    name: str
    task: Task
    sample: Rendition
    given: GivenShown | None
    """Of a2v and v2a."""
    strip: bytes
    """PNG of stills; for a2v those of the given window are above, where it is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesContents:
    """All that is shown of samples."""

    shown: tuple[ShownSample, ...]
    num_samples: int
    """In the folders, shown or not."""
    num_of_another_dit: int | None
    """Of those shown, how many another DiT has made; None where no DiT is shown."""


def find_samples(folders: Sequence[Path]) -> tuple[SampleFile, ...]:
    """All samples in some folders, by task, folder, seed and number.

    Raises:
        ConfigError: A folder holds none, or nothing readable is on record of them.
    """
    found = [sample for folder in folders for sample in _in_folder(folder)]
    return tuple(sorted(found, key=lambda sample: TASKS.index(sample.task)))


def _in_folder(folder: Path) -> list[SampleFile]:
    try:
        names = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read ({reason(error)}); name a folder that `mmldm sample` wrote"
        ) from error
    samples = [_sample(folder, name) for name in names if name is not None]
    if not samples:
        raise ConfigError(
            f"{folder} holds no samples; name a folder that `mmldm sample` wrote, whose files are "
            "called like svg_s0_00000.mp4"
        )
    return sorted(samples, key=lambda sample: (sample.seed, sample.index))


def _sample(folder: Path, name: re.Match[str]) -> SampleFile:
    index, record = int(name[4]), folder / f"{name[1]}.json"
    try:
        found: Any = json.loads(record.read_text(encoding="utf-8"))
        given = found["conditions"][index] if index < len(found["conditions"]) else {}
        return SampleFile(
            path=folder / name[0],
            record=record,
            task=next(task for task in TASKS if task == name[2]),
            seed=int(name[3]),
            index=index,
            made_by=found["made_by"].get("dit"),
            given=given.get("name"),
            given_digest=given.get("digest"),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{record} is no record of {name[0]} ({error!r}); sample again into another folder"
        ) from error


class ShowSample:
    """Shows samples, each beside the window that it goes by.

    Args:
        level: The ``kl`` level of the cache whose windows may have been given.
        windows: Finds them.
        originals: Names sources.
    """

    def __init__(self, level: CachedLevel, windows: ClipWindows, originals: Originals) -> None:
        self._level, self._windows, self._originals = level, windows, originals
        self._given: dict[str, tuple[GivenShown, NDArray[np.uint8] | None]] = {}

    def __call__(self, sample: SampleFile) -> ShownSample:
        """Shows one.

        Raises:
            ConfigError: It is no video with sound.
        """
        content = _content(sample.path)
        try:
            frames, waveform, sample_rate = read_mp4(content)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise ConfigError(
                f"{sample.path} is no video with sound ({error}); delete it and sample again"
            ) from error
        # AAC ends with a whole block, beyond the last picture.
        heard = waveform[:, : self._windows.num_samples(len(frames), sample_rate)]
        mel = self._windows.mel(Sound(waveform=heard, sample_rate=sample_rate))
        given, given_frames = self._find(sample)
        return ShownSample(
            name=sample.path.stem,
            task=sample.task,
            sample=Rendition(video=content, mel=mel),
            given=given,
            strip=strip_png(_strip_rows(sample.task, frames, given_frames)),
        )

    def _find(self, sample: SampleFile) -> tuple[GivenShown | None, NDArray[np.uint8] | None]:
        """What a sample goes by, and its pictures where there are any."""
        digest = sample.given_digest
        if sample.task == "svg" or digest is None:
            return None, None
        if not digest.startswith(_CACHED):
            absence = Unavailable(reason="it was given as a file, which is not in the cache")
            return _given(sample.given or digest, absence), None
        if digest not in self._given:
            self._given[digest] = self._find_cached(digest.removeprefix(_CACHED))
        return self._given[digest]

    def _find_cached(self, digest: str) -> tuple[GivenShown, NDArray[np.uint8] | None]:
        key, _, number = digest.rpartition(":")
        cached = self._level.clips.find(key)
        if cached is None or number not in map(str, range(cached.num_windows)):
            absence = Unavailable(reason="this cache does not hold the window")
            return _given(digest, absence), None
        name, window = self._originals.name(cached), int(number)
        found = self._windows.original(cached, window)
        is_decoded = isinstance(found, Unavailable)
        played = self._windows.from_kl(cached, window) if isinstance(found, Unavailable) else found
        shown = GivenShown(
            name=name,
            label=scene_label(name),
            window=self._windows.render(played),
            is_decoded=is_decoded,
        )
        return shown, played.frames


def _strip_rows(
    task: Task, frames: NDArray[np.uint8], given: NDArray[np.uint8] | None
) -> list[NDArray[np.uint8]]:
    stills = frames[still_frames(len(frames))]
    if task == "svg":  # its card is narrow
        half = -(-len(stills) // 2)
        return [stills[:half], stills[half:]]
    if task == "a2v" and given is not None:
        return [given[still_frames(len(given))], stills]
    return [stills]


def _given(name: str, absence: Unavailable) -> GivenShown:
    return GivenShown(name=name, label=scene_label(name), window=absence, is_decoded=False)


def choose_shown(samples: Sequence[SampleFile]) -> list[SampleFile]:
    """The first few of each task."""
    return [
        sample
        for task in TASKS
        for sample in [one for one in samples if one.task == task][:SHOWN_SAMPLES]
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({reason(error)})") from error
