"""Progress of a long job: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


@dataclass(slots=True)
class Tally:
    """What has been done so far."""

    num_done: int = 0
    num_clips: int = 0
    num_windows: int = 0
    num_failures: int = 0
    num_images: int = 0


Report = Callable[[Tally], None]


@contextmanager
def show_progress(
    verb: str,
    total: int,
    *,
    unit: str = "sources",
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """Gives a function to report to; it shows done of total, rate, ETA and failures."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with _bar(verb, total, unit, console) as report:
            yield report
    else:
        yield _lines(verb, total, unit, console, clock)


@contextmanager
def _bar(verb: str, total: int, unit: str, console: Console) -> Iterator[Report]:
    started = time.monotonic()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(f"{verb} {unit}", total=total, detail="")

        def report(tally: Tally) -> None:
            seconds = time.monotonic() - started
            progress.update(bar, completed=tally.num_done, detail=_detail(tally, seconds))

        yield report


def _lines(
    verb: str, total: int, unit: str, console: Console, clock: Callable[[], float]
) -> Report:
    started = last = clock()

    def report(tally: Tally) -> None:
        nonlocal last
        now = clock()
        finished = tally.num_done >= total
        if not finished and now - last < LINE_SECONDS:
            return
        last = now
        seconds = now - started
        left = (total - tally.num_done) * seconds / tally.num_done if tally.num_done else None
        eta = "" if finished or left is None else f", {left:.0f} s left"
        console.print(
            f"{verb} {tally.num_done}/{total} {unit}, {_detail(tally, seconds)}, "
            f"{seconds:.0f} s{eta}",
            highlight=False,
            soft_wrap=True,
        )

    return report


def _detail(tally: Tally, seconds: float) -> str:
    num, unit = (tally.num_clips, "clips") if tally.num_clips else (tally.num_done, "done")
    rate = f", {num / seconds:.2f}/s" if seconds > 0 else ""
    failures = f", {tally.num_failures} quarantined" if tally.num_failures else ""
    return f"{num} {unit}{rate}{failures}"
