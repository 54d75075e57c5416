"""Who is writing now: marks by which drivers and a gc learn of each other, on any machine.

Each writes its own mark first and then looks for the other's, so that of two that start at once
at least one sees the other: a driver waits until the gc is over, and a gc beside drivers removes
nothing that one of them could need. Ages are compared in the storage's own time, as the clocks of
machines differ.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from latents.cache.driver_marks import (
    Driver,
    Marks,
    Role,
    modified_seconds,
    read_marks,
    write_mark,
)
from latents.cache.layout import CacheLayout
from latents.durable import reading_from, reason, writing_to
from latents.errors import CacheError

_log = logging.getLogger(__name__)

BEAT_SECONDS = 30.0
WAIT_SECONDS = 3600.0
"""How long a driver waits for a gc."""
POLL_SECONDS = 1.0


@contextmanager
def driving(
    layout: CacheLayout, *, purpose: str, wait_seconds: float = WAIT_SECONDS
) -> Iterator[None]:
    """Held by whoever writes to a cache, from before it reads what is there until it is done.

    Args:
        layout: The cache.
        purpose: What it does, for others who look.
        wait_seconds: How long to wait for a gc that is running.

    Raises:
        CacheError: The cache cannot be written, or the gc goes on for longer.
    """
    with _marked(layout, "driver", purpose) as mark:
        _wait_for_gc(layout, mark, wait_seconds)
        yield


@contextmanager
def collecting(layout: CacheLayout) -> Iterator[Marks]:
    """Held by a gc: drivers that start from now on wait. Gives those that had started before.

    Raises:
        CacheError: Another gc is running, or the cache cannot be written.
    """
    with _marked(layout, "gc", "gc") as mark:
        marks = _look(layout, mark)
        if others := marks.of("gc"):
            raise CacheError(
                f"{layout.url}: another gc is running ({others[0]}); run this again when it is over"
            )
        yield marks


def running_drivers(layout: CacheLayout, *, now: float | None = None) -> list[Driver]:
    """Drivers at work, the oldest first; those whose process is gone are left out.

    Args:
        layout: The cache.
        now: Seconds since 1970 in the storage's time; by default this machine's.
    """
    found = read_marks(layout, now=time.time() if now is None else now).of("driver")
    return sorted(found, key=lambda driver: driver.started_seconds)


@contextmanager
def _marked(layout: CacheLayout, role: Role, purpose: str) -> Iterator[str]:
    """Holds a mark and renews it; gives its file's name."""
    name = f"drivers/{uuid.uuid4().hex}.json"
    try:
        with writing_to(layout.url):
            write_mark(layout, name, role=role, purpose=purpose, started=None)
            started = int(modified_seconds(layout, name))
            write_mark(layout, name, role=role, purpose=purpose, started=started)
        with _renewed(layout, name, role=role, purpose=purpose, started=started):
            yield name
    finally:
        try:
            layout.storage.delete(name)
        except OSError as error:
            _log.warning("%s: %s stays behind (%s)", layout.url, name, reason(error))


@contextmanager
def _renewed(
    layout: CacheLayout, name: str, *, role: Role, purpose: str, started: int
) -> Iterator[None]:
    stopped = threading.Event()

    def renew() -> None:
        while not stopped.wait(BEAT_SECONDS):
            try:
                write_mark(layout, name, role=role, purpose=purpose, started=started)
            except OSError as error:
                _log.warning("%s: %s was not renewed (%s)", layout.url, name, reason(error))

    thread = threading.Thread(target=renew, name="driver mark", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        # A renewal that comes after the mark is removed would bring it back.
        thread.join()


def _wait_for_gc(layout: CacheLayout, mark: str, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    is_told = False
    while running := _look(layout, mark).of("gc"):
        if not is_told:
            _log.warning("%s: waiting until %s is over", layout.url, running[0])
            is_told = True
        if time.monotonic() > deadline:
            raise CacheError(
                f"{layout.url}: {running[0]} is still not over after {wait_seconds:.0f} s; nothing "
                "was done. Run the same command again when it is"
            )
        time.sleep(POLL_SECONDS)


def _look(layout: CacheLayout, mark: str) -> Marks:
    """The marks of others; now is when our own was last renewed, by the storage's clock."""
    with reading_from(layout.url):
        now = modified_seconds(layout, mark)
    marks = read_marks(layout, now=now)
    others = tuple(one for one in marks.alive if one.name != mark)
    return Marks(now_seconds=now, alive=others, stale=marks.stale)
