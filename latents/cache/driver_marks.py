"""The marks that whoever writes to a cache holds in it, and whose process is still there."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from latents.cache.layout import CacheLayout
from latents.cache.storage import StoredFile
from latents.durable import reading_from
from latents.recipe import open_sealed_json, sealed_json

SILENCE_SECONDS = 600.0
"""A mark of another machine that is not renewed for so long belongs to a process that is gone."""

Role = Literal["driver", "gc"]

_MARK = re.compile(r"drivers/[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """A process that holds a mark."""

    name: str
    """File of the mark."""
    role: Role
    purpose: str
    """For example ``ingest``."""
    host: str
    machine: str
    """Where process numbers mean the same: one boot of one machine, one process namespace."""
    pid: int
    process_started: int
    """Clock ticks from the machine's boot to the start of the process; -1 where not known."""
    started_seconds: int
    """In the storage's time, rounded down; 0 where not known."""
    modified_seconds: float
    """When the mark was last renewed, in the storage's time."""

    def __str__(self) -> str:
        return f"{self.purpose} on {self.host}, process {self.pid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """The marks in a cache at one time."""

    now_seconds: float
    """In the storage's time."""
    alive: tuple[Driver, ...]
    stale: tuple[Driver, ...]
    """Of processes that are gone."""

    def of(self, role: Role) -> tuple[Driver, ...]:
        """Those alive in a role."""
        return tuple(one for one in self.alive if one.role == role)


def read_marks(layout: CacheLayout, *, now: float) -> Marks:
    """All marks as they are at a time of the storage; raises `CacheError` where it is silent."""
    with reading_from(layout.url):
        files = [file for file in layout.storage.list("drivers") if _MARK.fullmatch(file.name)]
        marks = [_read_mark(layout, file) for file in files]
    found = sorted((mark for mark in marks if mark is not None), key=lambda mark: mark.name)
    is_alive = {mark.name: _is_alive(mark, now) for mark in found}
    return Marks(
        now_seconds=now,
        alive=tuple(mark for mark in found if is_alive[mark.name]),
        stale=tuple(mark for mark in found if not is_alive[mark.name]),
    )


def write_mark(
    layout: CacheLayout, name: str, *, role: Role, purpose: str, started: int | None
) -> None:
    """Writes or renews our mark; ``started`` is None until the storage's time is known."""
    pid = os.getpid()
    mark = sealed_json(
        {
            "role": role,
            "purpose": purpose,
            "host": socket.gethostname(),
            "machine": _this_machine(),
            "pid": pid,
            "process_started": _process_started(pid),
            "started": started,
            "beat": int(time.time()),
        }
    )
    layout.storage.replace(name, mark)


def modified_seconds(layout: CacheLayout, name: str) -> float:
    """When a mark was last written, in the storage's time; 0 where it is not there."""
    times = (f.modified_seconds for f in layout.storage.list("drivers") if f.name == name)
    return next(times, 0.0)


def _read_mark(layout: CacheLayout, file: StoredFile) -> Driver | None:
    """A mark, or None where it has just been removed. A damaged one may still be somebody's."""
    try:
        content = layout.storage.read(file.name)
    except FileNotFoundError:
        return None
    try:
        parsed = open_sealed_json(content)
        numbers = (parsed["pid"], parsed["process_started"], parsed["started"] or 0)
        if not all(type(number) is int and -1 <= number < 2**53 for number in numbers):
            raise ValueError("a process and a time are numbers")
        if not 0 < parsed["pid"] < 2**31:
            raise ValueError("no process has this number")
        return Driver(
            name=file.name,
            role=parsed["role"],
            purpose=parsed["purpose"],
            host=parsed["host"],
            machine=parsed["machine"],
            pid=parsed["pid"],
            process_started=parsed["process_started"],
            # Before it is known, the mark has been written once.
            started_seconds=parsed["started"] or int(file.modified_seconds),
            modified_seconds=file.modified_seconds,
        )
    except (KeyError, ValueError):
        return Driver(
            name=file.name,
            role="driver",
            purpose="something unknown",
            host="an unknown host",
            machine="",
            pid=0,
            process_started=-1,
            started_seconds=0,
            modified_seconds=file.modified_seconds,
        )


def _is_alive(mark: Driver, now: float) -> bool:
    if mark.machine != _this_machine():
        return now - mark.modified_seconds < SILENCE_SECONDS
    try:
        os.kill(mark.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    # Another process may have been given the number.
    found = _process_started(mark.pid)
    return -1 in (found, mark.process_started) or found == mark.process_started


@cache
def _this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _process_started(pid: int) -> int:
    """As in `Driver`; 0 where the process has ended and only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return -1
    # The name of the command, in parentheses, may hold anything.
    state, *others = stat.rpartition(b")")[2].split()
    return 0 if state in b"ZX" else int(others[18])
