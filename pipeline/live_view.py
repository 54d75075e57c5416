"""A run as it goes on: a bar and its figures on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from pipeline.figures import Figures
from pipeline.figures_text import progress_text, stages_text, stopping_text, view_lines
from pipeline.progress import LINE_SECONDS

_BAR_COLUMNS = 60


class RunView(Protocol):
    """Shows the figures of a run."""

    def show(self, figures: Figures) -> None:
        """Called every moment."""

    def end(self, figures: Figures) -> None:
        """Called once, with the last figures."""


@contextmanager
def open_view(
    *,
    verb: str,
    unit: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[RunView]:
    """The view that fits standard error, or the console that is given."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _LineView(console, verb=verb, unit=unit, clock=clock)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield _TerminalView(live, verb=verb, unit=unit)


class _TerminalView:
    def __init__(self, live: Live, *, verb: str, unit: str) -> None:
        self._live, self._verb, self._unit = live, verb, unit

    def show(self, figures: Figures) -> None:
        bar = ProgressBar(total=figures.num_total, completed=figures.num_done, width=_BAR_COLUMNS)
        lines = view_lines(figures, verb=self._verb, unit=self._unit)
        self._live.update(Group(bar, *map(Text, lines)), refresh=True)

    def end(self, figures: Figures) -> None:
        self.show(figures)


class _LineView:
    def __init__(
        self, console: Console, *, verb: str, unit: str, clock: Callable[[], float]
    ) -> None:
        self._console, self._verb, self._unit, self._clock = console, verb, unit, clock
        self._last = clock()
        self._is_stopping = False

    def show(self, figures: Figures) -> None:
        if figures.is_stopping and not self._is_stopping:
            self._is_stopping = True
            self._print(stopping_text(figures))
        if self._clock() - self._last >= LINE_SECONDS:
            self._last = self._clock()
            self.end(figures)

    def end(self, figures: Figures) -> None:
        text = progress_text(figures, verb=self._verb, unit=self._unit)
        stages = stages_text(figures)
        self._print(f"{text}; {stages}" if stages else text)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
