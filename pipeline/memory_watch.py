"""How much memory a process holds, and a watch that says when it is too much."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

WATCH_SECONDS = 0.1
"""Between two looks at a process."""


class MemoryExceededError(Exception):
    """A process holds more memory than it may.

    Args:
        found_bytes: What it held when it was looked at.
        limit_bytes: What it may hold.
    """

    def __init__(self, found_bytes: int, limit_bytes: int) -> None:
        super().__init__(found_bytes, limit_bytes)
        self.found_bytes, self.limit_bytes = found_bytes, limit_bytes


class MemoryWatch:
    """Looks at a process, as seldom as every `WATCH_SECONDS` however often it is asked to.

    Args:
        process_id: Of the process.
        limit_bytes: What it may hold; 0 for no limit.
        resident: Bytes that a process holds; None where that cannot be known, and is not limited.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        process_id: int,
        *,
        limit_bytes: int,
        resident: Callable[[int], int | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process_id = process_id
        self._limit_bytes = limit_bytes
        self._resident = resident or resident_bytes
        self._clock = clock
        self._next_look = clock()

    def look(self) -> None:
        """Raises `MemoryExceededError` where the process holds too much."""
        if not self._limit_bytes or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + WATCH_SECONDS
        found = self._resident(self._process_id)
        if found is not None and found > self._limit_bytes:
            raise MemoryExceededError(found, self._limit_bytes)


def resident_bytes(process_id: int) -> int | None:
    """Bytes of physical memory that a process holds; None where that cannot be known.

    From ``/proc`` where there is one, else from psutil where it is installed.
    """
    try:
        pages = Path(f"/proc/{process_id}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return _resident_by_psutil(process_id)
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _resident_by_psutil(process_id: int) -> int | None:
    try:
        # Not imported as others are: it is no dependency, and need not be there.
        psutil: Any = import_module("psutil")
    except ImportError:
        return None
    try:
        return int(psutil.Process(process_id).memory_info().rss)
    except psutil.Error:
        return None
