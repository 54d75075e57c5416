"""Landscape as MM-Diffusion distributes it: folders of videos, one for each split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from latents.errors import SourceError
from pipeline.datasets.splits import folders_and_name, is_split, split_of_folders
from pipeline.source_columns import is_utf8
from pipeline.source_entries import Annotation, NamedFile
from pipeline.source_places import pieces_of_place
from pipeline.source_search import videos_below

CLASSES_NAME = "vid2class.json"
"""Beside the videos' folders: ``{ID: CLASS}``, where a class is a text or has a ``class_name``."""

_CLASSES = (
    "explosion",
    "fire_crackling",
    "raining",
    "splashing_water",
    "squishing_water",
    "thunder",
    "underwater_bubbling",
    "waterfall_burbling",
    "wind_noise",
)


def landscape_files(folder: str) -> Iterator[NamedFile]:
    """The videos of Landscape with their classes and splits.

    A video's split is that of the folder it lies in. Its class is the one that ``vid2class.json``
    in the data set's folder has for the file's name without its suffix; else the one of the nine
    classes that its folder, or else its own name, begins with; else its folder, where that lies
    below a split's. Where none of these says anything, it has no label.

    Raises:
        SourceError: The folder holds no video, or the classes cannot be read.
    """
    root = folder.rstrip("/")
    classes = _read_classes(f"{root}/{CLASSES_NAME}")
    for video in videos_below(root):
        *folders, name = folders_and_name(video.place, root)
        stem = PurePosixPath(name).stem
        label = classes.get(stem) or _class_of(stem, folders)
        split = split_of_folders(folders)
        said = Annotation(label=label, split=split) if label or split else None
        yield replace(video, annotation=said)


def _class_of(stem: str, folders: list[str]) -> str | None:
    """The class that a folder is called by, or that a name begins with, or the last folder."""
    last, above = folders[-1], folders[:-1]
    if known := _class_of_name(last) or _class_of_name(stem):
        return known
    is_below_split = any(map(is_split, above)) and not is_split(last)
    return last if is_below_split and is_utf8(last) else None


def _class_of_name(name: str) -> str | None:
    """The class that a name begins with."""
    plain = re.sub(r"[\s\-]+", "_", name.lower())
    return next((one for one in _CLASSES if re.match(rf"{one}(_|\d|$)", plain)), None)


def _read_classes(place: str) -> Mapping[str, str]:
    try:
        parsed = json.loads(b"".join(pieces_of_place(place)))
        return {str(name): _class_name(said) for name, said in parsed.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(
            f'{place} cannot be read ({error}); wanted {{"ID": "CLASS", ...}} or '
            '{"ID": {"class_name": "CLASS"}, ...}'
        ) from error


def _class_name(said: object) -> str:
    name = said.get("class_name") if isinstance(said, dict) else said
    if not isinstance(name, str) or not is_utf8(name):
        raise ValueError(f"found the class {repr(said)[:100]}")
    return name
