"""Windows of some clips by number, clip after clip: what a reader of them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WindowShapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""By field, shape and type of one window."""


class NumberedWindows(Protocol):
    """Windows of a level, numbered clip after clip, wherever they are; what training reads."""

    @property
    def index(self) -> WindowIndex:
        """Which clip a window belongs to."""

    @property
    def num_windows(self) -> int:
        """How many there are."""

    def take(self, windows: NDArray[np.int64]) -> Mapping[str, Any]:
        """Windows by number: for each field (window, ...), arrays or tensors of the caller's own.

        Args:
            windows: Numbers, in any order, the same one as often as wanted.

        Raises:
            IndexError: There is no such window.
            DamagedError: The bytes are not what was written.
        """

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""


class Windows(NumberedWindows, Protocol):
    """Windows that are given as arrays."""

    @property
    def shapes(self) -> WindowShapes:
        """Of one window."""

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Windows by number: for each field (window, ...), in the order asked for.

        Args:
            windows: Numbers, in any order, the same one as often as wanted.
            out: The arrays to fill, of exactly that shape and type, by field; by default new ones.

        Raises:
            IndexError: There is no such window.
            ValueError: An array to fill has another shape or type, or is not contiguous.
            DamagedError: The bytes are not what was written.
        """


class WindowIndex:
    """Which clip a window belongs to. Takes 8 bytes a clip beside the clips' keys.

    Args:
        keys: Of the clips in order, as bytes of one length (``S44``), zeros behind shorter ones.
        num_windows: Of each clip.
    """

    def __init__(self, keys: NDArray[np.bytes_], num_windows: NDArray[np.int64]) -> None:
        self._keys = keys
        self._firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(num_windows)])
        self.num_windows = int(self._firsts[-1])

    def find(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of each window's clip, and the window's number within it.

        Raises:
            IndexError: There is no such window.
        """
        self.require(windows)
        clips = np.searchsorted(self._firsts, windows, side="right") - 1
        return clips, windows - self._firsts[clips]

    def require(self, windows: NDArray[np.int64]) -> None:
        """Raises `IndexError` where there is no such window."""
        if len(windows) and not 0 <= windows.min() <= windows.max() < self.num_windows:
            raise IndexError(f"there are {self.num_windows} windows; {windows} has others")

    def windows_of(self, clip: int) -> NDArray[np.int64]:
        """All windows of a clip, by the clip's number."""
        return np.arange(self._firsts[clip], self._firsts[clip + 1])

    def clip(self, clip: int) -> str:
        """A clip's key, by its number."""
        key: str = self._keys[clip].decode()
        return key

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        clips, numbers = self.find(np.array([window], np.int64))
        return self.clip(int(clips[0])), int(numbers[0])

    @property
    def clips(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Of each clip, key and number of windows, as they were given."""
        return self._keys, np.diff(self._firsts)


def joined_index(indexes: Sequence[WindowIndex]) -> WindowIndex:
    """The index of windows that are numbered one index after the other."""
    keys, counts = zip(*(one.clips for one in indexes), strict=True)
    return WindowIndex(np.concatenate(keys), np.concatenate(counts))


def gather(
    tensors: Mapping[str, NDArray[Any]],
    windows: NDArray[np.int64],
    out: Mapping[str, NDArray[Any]] | None,
) -> Mapping[str, NDArray[Any]]:
    """Rows of arrays (window, ...) that are in memory, by numbers that are known to be there."""
    shapes = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}
    taken = room_for(len(windows), shapes, out)
    for name, tensor in tensors.items():
        # "clip" has no bounds to check, which is several times faster.
        np.take(tensor, windows, axis=0, out=taken[name], mode="clip")
    return taken


def room_for(
    num_windows: int,
    shapes: WindowShapes,
    out: Mapping[str, NDArray[Any]] | None,
) -> Mapping[str, NDArray[Any]]:
    """Arrays for some windows: those given, once they are checked, or new ones.

    Args:
        num_windows: First axis of each array.
        shapes: Of one window.
        out: See `Windows.take`.

    Raises:
        ValueError: An array is missing, has another shape or type, or is not contiguous.
    """
    if out is None:
        return {name: np.empty((num_windows, *shape), of) for name, (shape, of) in shapes.items()}
    for name, (shape, dtype) in shapes.items():
        wanted, found = (num_windows, *shape), out.get(name)
        if found is None or (found.shape, found.dtype) != (wanted, dtype):
            has = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"out[{name!r}] is {has}; wanted {dtype} {wanted}")
        if not (found.flags.c_contiguous and found.flags.writeable):
            raise ValueError(f"out[{name!r}] must be contiguous and writable")
    return {name: out[name] for name in shapes}
