"""Windows of several readers as if they were of one: those of the first, then the second's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.cache.windows import Windows, WindowShapes, joined_index, room_for
from latents.errors import CacheError, DamagedError


class ConcatenatedWindows:
    """All windows of some readers, numbered reader after reader.

    A batch takes from each reader at once what it has of it. Several threads may take windows
    where they may of every reader, and it can be pickled where every reader can.

    Args:
        parts: At least one.
        names: What errors call each of them.

    Raises:
        CacheError: Their windows have other shapes or types, or other fields.
        ValueError: There are none, or not as many names.
    """

    def __init__(self, parts: Sequence[Windows], *, names: Sequence[str]) -> None:
        if not parts or len(parts) != len(names):
            raise ValueError(f"{len(parts)} readers and {len(names)} names; wanted a name for each")
        self._parts, self._names = tuple(parts), tuple(names)
        self.shapes: WindowShapes = parts[0].shapes
        """Of one window."""
        for name, part in zip(names, parts, strict=True):
            _require_same_shapes(name, part.shapes, names[0], self.shapes)
        self.index = joined_index([part.index for part in parts])
        counts = [part.num_windows for part in parts]
        self._firsts = np.array([0, *accumulate(counts)], np.int64)

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return self.index.num_windows

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Windows by number; see `latents.cache.windows.Windows`."""
        self.index.require(windows)
        taken = room_for(len(windows), self.shapes, out)
        readers = np.searchsorted(self._firsts, windows, side="right") - 1
        for reader, part in enumerate(self._parts):
            rows = np.flatnonzero(readers == reader)
            numbers = windows[rows] - self._firsts[reader]
            if not len(rows):
                continue
            with _told_of(self._names[reader]):
                if len(rows) == len(windows):
                    return part.take(numbers, out=taken)
                found = part.take(numbers)
            for name, array in found.items():
                taken[name][rows] = array
        return taken

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        return self.index.place(window)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Says which reader found damage: caches of equal clips have shards of equal names."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{name}: {error.path}", error.offset, error.problem) from error


def _require_same_shapes(
    name: str, found: WindowShapes, first_name: str, wanted: WindowShapes
) -> None:
    if dict(found) != dict(wanted):
        raise CacheError(
            f"the windows of {name} are {_described(found)}, but those of {first_name} are "
            f"{_described(wanted)}; only windows of one shape can be read together. Refresh one "
            "of the caches with the settings of the other, or leave it out"
        )


def _described(shapes: WindowShapes) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in sorted(shapes.items()))
