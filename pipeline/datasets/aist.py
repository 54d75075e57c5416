"""AIST++ as MM-Diffusion crops and distributes it: dances whose file names say what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.datasets.splits import folders_and_name, split_of_folders
from pipeline.source_entries import Annotation, NamedFile
from pipeline.source_search import videos_below

_NAME = re.compile(
    r"g(?P<genre>[A-Z]{2})_s(?P<situation>[A-Z]{2})_c(?P<camera>\d{2}|All)"
    r"(?P<dancers>(?:_d\d{2})+)_m(?P<music>[A-Z]{2}\d)_ch(?P<choreography>\d{2})"
)
GENRES = {
    "BR": "break",
    "PO": "pop",
    "LO": "lock",
    "MH": "middle hip-hop",
    "LH": "LA-style hip-hop",
    "HO": "house",
    "WA": "waack",
    "KR": "krump",
    "JS": "street jazz",
    "JB": "ballet jazz",
}
"""Names of the ten genres, by their code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dance:
    """What the name of a file of the AIST Dance Video Database says."""

    genre: str
    """``BR`` and so on."""
    situation: str
    """``BM`` for a basic move, ``FM`` for an advanced one, and so on."""
    camera: str
    dancers: tuple[str, ...]
    music: str
    """``BR0`` to ``JB5``: sixty pieces, six for each genre."""
    choreography: str


def dance_of_name(name: str) -> Dance | None:
    """What a file's name says, whatever follows it; None where it is no such name."""
    match = _NAME.search(name)
    if match is None:
        return None
    found = match.groupdict()
    dancers = tuple(part.removeprefix("d") for part in found.pop("dancers").split("_")[1:])
    return Dance(dancers=dancers, **found)


def aist_files(folder: str) -> Iterator[NamedFile]:
    """The videos of AIST++ with genres as labels, the rest as captions, and splits by folder.

    Raises:
        SourceError: The folder holds no video.
    """
    root = folder.rstrip("/")
    for video in videos_below(root):
        *folders, name = folders_and_name(video.place, root)
        dance, split = dance_of_name(PurePosixPath(name).stem), split_of_folders(folders)
        if dance is not None:
            said = Annotation(label=_genre(dance), caption=_caption(dance), split=split)
            yield replace(video, annotation=said)
        else:
            yield replace(video, annotation=Annotation(split=split) if split else None)


def _genre(dance: Dance) -> str:
    return GENRES.get(dance.genre, dance.genre)


def _caption(dance: Dance) -> str:
    """All that the name says; situation and music by their codes."""
    dancers = " ".join(dance.dancers)
    return (
        f"{_genre(dance)} dance, situation {dance.situation}, "
        f"camera {dance.camera}, dancer {dancers}, music {dance.music}, "
        f"choreography {dance.choreography}"
    )
