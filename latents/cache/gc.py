"""Removing files that nothing needs: what killed runs left, and latents that no ref reaches.

Commits, the rows they name, refs and whatever those reach are never touched. A gc that finds
drivers at work removes only what none of them could make again under the same name: shards and
rows are named by their content, so a driver may at any time write the very file that nothing
names yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from latents.cache.driver_marks import Driver, Marks, read_marks
from latents.cache.drivers import collecting
from latents.cache.garbage import FilesInUse, Reason, UnreachedRecipe, files_in_use, why_garbage
from latents.cache.layout import CacheLayout
from latents.cache.log import READ_THREADS, CommitLog
from latents.cache.reach import read_history
from latents.cache.rows import TombstoneRow, rows_to_table
from latents.cache.storage import StoredFile
from latents.durable import reading_from, writing_to

GRACE_SECONDS = 3600.0

LeftFor = Literal["too young", "drivers at work", "not asked for"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A file that nothing needs."""

    name: str
    num_bytes: int
    reason: Reason
    left_for: LeftFor | None = None
    """Why it stays all the same; None: it goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GcPlan:
    """What a gc would remove."""

    commit: int
    """The head."""
    grace_seconds: float
    ends_unreached: bool
    """Whether latents of unreached recipes leave the head."""
    drivers: tuple[Driver, ...]
    """At work now."""
    garbage: tuple[Garbage, ...]
    """All of it, in order of name; of some, ``left_for`` says why they stay."""
    unreached: tuple[UnreachedRecipe, ...]

    @property
    def removable(self) -> tuple[Garbage, ...]:
        """What goes."""
        return tuple(one for one in self.garbage if one.left_for is None)

    @property
    def ended(self) -> tuple[UnreachedRecipe, ...]:
        """Recipes whose latents leave the head."""
        return self.unreached if self.ends_unreached and not self.drivers else ()

    @property
    def left(self) -> tuple[Garbage, ...]:
        """What stays for now."""
        return tuple(one for one in self.garbage if one.left_for is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a gc did."""

    removed: tuple[Garbage, ...]
    left: tuple[Garbage, ...]
    ended: tuple[UnreachedRecipe, ...]
    """Recipes whose latents left the head."""
    drivers: tuple[Driver, ...]


def num_bytes_by_reason(garbage: Iterable[Garbage]) -> dict[Reason, int]:
    """Bytes of files, by why nothing needs them."""
    num_bytes: Counter[Reason] = Counter()
    for one in garbage:
        num_bytes[one.reason] += one.num_bytes
    return dict(sorted(num_bytes.items()))


def plan_gc(
    layout: CacheLayout,
    *,
    grace_seconds: float = GRACE_SECONDS,
    unreached: bool = False,
    now: float | None = None,
) -> GcPlan:
    """What could be removed now, and why; nothing is changed.

    Args:
        layout: The cache.
        grace_seconds: Younger files stay.
        unreached: Whether latents by recipes that no ref reaches leave the head.
        now: Seconds since 1970 in the storage's time; by default this machine's.

    Raises:
        DamagedError: The log or a ref is damaged: what it needs cannot be known.
    """
    marks = read_marks(layout, now=time.time() if now is None else now)
    return _plan(layout, marks, grace_seconds=grace_seconds, ends_unreached=unreached)


def collect_garbage(layout: CacheLayout, plan: GcPlan, *, run: Mapping[str, str]) -> Collected:
    """Removes what a plan lists, less what has come into use since. Drivers that start now wait.

    Args:
        layout: The cache.
        plan: From `plan_gc`.
        run: Recorded with the commit by which unreached latents leave the head.

    Raises:
        CacheError: Another gc is running, or the cache cannot be written.
        DamagedError: As `plan_gc`.
    """
    with collecting(layout) as marks:
        found = _plan(
            layout, marks, grace_seconds=plan.grace_seconds, ends_unreached=plan.ends_unreached
        )
        listed = {one.name for one in plan.removable}
        removed = tuple(one for one in found.removable if one.name in listed)
        # Before their shards go: whoever opens the head must not find latents that are gone.
        _end(layout, found, run)
        with writing_to(layout.url), ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(layout.storage.delete, [one.name for one in removed]))
    return Collected(removed=removed, left=found.left, ended=found.ended, drivers=found.drivers)


def _plan(
    layout: CacheLayout, marks: Marks, *, grace_seconds: float, ends_unreached: bool
) -> GcPlan:
    with reading_from(layout.url):
        # Before the log: what is committed between the two is seen as committed.
        files = sorted(layout.storage.list(""), key=lambda file: file.name)
    names = [file.name for file in files]
    history = read_history(layout)
    use = files_in_use(layout, history, names=names, stale=marks.stale)
    judge = _Judge(
        use,
        marks,
        young_since=marks.now_seconds - grace_seconds,
        ends_unreached=ends_unreached,
    )
    return GcPlan(
        commit=history.snapshot.commit,
        grace_seconds=grace_seconds,
        ends_unreached=ends_unreached,
        drivers=marks.of("driver"),
        garbage=tuple(one for one in map(judge.garbage, files) if one is not None),
        unreached=use.unreached,
    )


class _Judge:
    """Says of each file whether it is garbage, and whether it may go."""

    def __init__(
        self, use: FilesInUse, marks: Marks, *, young_since: float, ends_unreached: bool
    ) -> None:
        self._use = use
        self._young_since = young_since
        self._ends_unreached = ends_unreached
        drivers = marks.of("driver")
        self._drivers_since = min((one.started_seconds for one in drivers), default=None)

    def garbage(self, file: StoredFile) -> Garbage | None:
        """The file, where nothing needs it."""
        reason = why_garbage(file.name, self._use)
        if reason is None:
            return None
        return Garbage(
            name=file.name,
            num_bytes=file.num_bytes,
            reason=reason,
            left_for=self._left_for(file, reason),
        )

    def _left_for(self, file: StoredFile, reason: Reason) -> LeftFor | None:
        if reason == "stale driver mark":
            return None
        if not self._ends_unreached and self._use.is_at_head(file.name):
            return "not asked for"
        # No other writer ever has the name of a partial file.
        since = self._drivers_since
        if since is not None and (reason != "partial file" or file.modified_seconds >= since):
            return "drivers at work"
        return "too young" if file.modified_seconds > self._young_since else None


def _end(layout: CacheLayout, plan: GcPlan, run: Mapping[str, str]) -> None:
    rows = [
        TombstoneRow(reason="unreached", uri=None, source=None, clip=None, recipe=one.recipe)
        for one in plan.ended
    ]
    if rows:
        log = CommitLog(layout, seen=plan.commit)
        log.append({"tombstones": rows_to_table("tombstones", rows)}, run)
