"""A process that holds more memory than it may is found out."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline import memory_watch
from pipeline.memory_watch import MemoryExceededError, MemoryWatch, resident_bytes


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_a_process_takes_is_seen() -> None:
    before = resident_bytes(os.getpid())
    taken = np.ones(64 * 2**20, np.uint8)
    after = resident_bytes(os.getpid())

    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(taken.nbytes, rel=0.2)


def test_without_a_proc_folder_psutil_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    with_proc = resident_bytes(os.getpid())
    monkeypatch.setattr(memory_watch, "Path", lambda _: Path("/nowhere"))

    assert with_proc is not None
    assert resident_bytes(os.getpid()) == pytest.approx(with_proc, rel=0.2)


def test_without_psutil_too_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_psutil(name: str) -> ModuleType:
        if name == "psutil":
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(memory_watch, "Path", lambda _: Path("/nowhere"))
    monkeypatch.setattr(memory_watch, "import_module", no_psutil)

    assert resident_bytes(os.getpid()) is None


def test_a_process_that_is_gone_holds_nothing_that_is_known() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    assert resident_bytes(process.pid) is None


def test_over_its_limit_both_figures_are_told() -> None:
    clock = Clock()
    held = [100, 101]
    watch = MemoryWatch(1, limit_bytes=100, resident=lambda _: held.pop(0), clock=clock)
    watch.look()
    clock.seconds = 1

    with pytest.raises(MemoryExceededError) as caught:
        watch.look()
    assert (caught.value.found_bytes, caught.value.limit_bytes) == (101, 100)


def test_it_looks_no_more_often_than_every_tenth_of_a_second() -> None:
    clock = Clock()
    looks: list[int] = []

    def resident(process_id: int) -> int:
        looks.append(process_id)
        return 0

    watch = MemoryWatch(7, limit_bytes=1, resident=resident, clock=clock)
    for sixteenths in range(17):
        clock.seconds = sixteenths / 16
        watch.look()

    assert looks == [7] * 9


@pytest.mark.parametrize(("limit_bytes", "found"), [(0, 2**50), (1, None)])
def test_without_a_limit_or_a_figure_nothing_is_too_much(
    limit_bytes: int, found: int | None
) -> None:
    MemoryWatch(1, limit_bytes=limit_bytes, resident=lambda _: found).look()
