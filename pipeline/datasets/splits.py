"""Splits by the names of folders."""

from __future__ import annotations

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "eval": "test",
}


def folders_and_name(place: str, root: str) -> list[str]:
    """The names from the folder that was named down to a file, both included."""
    first = place.partition("::")[0]
    below = first.removeprefix(root.partition("::")[0]).strip("/").split("/")
    return [root.partition("::")[0].rpartition("/")[2], *below]


def split_of_folders(folders: list[str]) -> str | None:
    """The split that the last of some folders is called by; None where none is."""
    return next((_SPLITS[name.lower()] for name in reversed(folders) if is_split(name)), None)


def is_split(folder: str) -> bool:
    """Whether a folder is called by a split."""
    return folder.lower() in _SPLITS
