"""The steps of a demo, as they are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


class Steps:
    """Numbers the steps of a demo and says what each comes to.

    Args:
        total: How many there are.
        say: Takes each line of what is told to the user.
    """

    def __init__(self, total: int, say: Say) -> None:
        self._total = total
        self._number = 0
        self._say = say

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announces a step, and says how long it took."""
        started = time.monotonic()
        self._number += 1
        self._say(f"[{self._number}/{self._total}] {title}")
        yield
        self.note(f"{time.monotonic() - started:.1f} s")

    def note(self, line: str) -> None:
        """Says what a step found."""
        self._say(f"      {line}")
