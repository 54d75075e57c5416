"""Marks of drivers: who is writing is known to all; no gc and driver overlook each other."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from latents.cache import drivers
from latents.cache.drivers import collecting, driving, running_drivers
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.storage import StoredFile
from latents.errors import CacheError
from latents.recipe import open_sealed_json, sealed_json


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "POLL_SECONDS", 0.01)


def marks(layout: CacheLayout) -> list[Path]:
    return sorted(Path(layout.url, "drivers").glob("*"))


def purposes(layout: CacheLayout, *, now: float | None = None) -> list[str]:
    return [driver.purpose for driver in running_drivers(layout, now=now)]


def leave_mark(layout: CacheLayout, *, age_seconds: float = 0, **changes: Any) -> Path:
    """The mark of this process with some of its content changed, and renewed some time ago."""
    with driving(layout, purpose="left"):
        (path,) = marks(layout)
        content = open_sealed_json(path.read_bytes())
    path.write_bytes(sealed_json(content | changes))
    os.utime(path, (time.time() - age_seconds,) * 2)
    return path


def leave_foreign_mark(layout: CacheLayout) -> None:
    """The mark of a driver elsewhere, just renewed."""
    content: dict[str, Any] = {
        "role": "driver",
        "purpose": "older",
        "host": "elsewhere",
        "machine": "another",
        "pid": 1,
        "process_started": 1,
        "started": 1,
        "beat": 1,
    }
    layout.storage.replace(f"drivers/{'f' * 32}.json", sealed_json(content))


class TestMarks:
    def test_a_driver_is_seen_while_it_runs_and_not_after(self, layout: CacheLayout) -> None:
        with driving(layout, purpose="ingest"):
            (driver,) = running_drivers(layout)
            assert (driver.purpose, driver.pid) == ("ingest", os.getpid())
            assert abs(driver.started_seconds - time.time()) < 5

        assert running_drivers(layout) == []
        assert marks(layout) == []

    def test_a_driver_that_fails_takes_its_mark_along(self, layout: CacheLayout) -> None:
        with pytest.raises(ZeroDivisionError), driving(layout, purpose="ingest"):
            _ = 1 / 0

        assert marks(layout) == []

    def test_a_mark_is_sealed_json_without_floats(self, layout: CacheLayout) -> None:
        with driving(layout, purpose="ingest"):
            content = marks(layout)[0].read_bytes()

        parsed = open_sealed_json(content)
        assert parsed["purpose"] == "ingest"
        assert all(isinstance(parsed[key], int) for key in ("pid", "started", "beat"))
        assert "." not in json.dumps([parsed["started"], parsed["beat"]])

    def test_a_mark_is_renewed_and_not_brought_back(
        self, layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(drivers, "BEAT_SECONDS", 0.01)
        with driving(layout, purpose="ingest"):
            (path,) = marks(layout)
            os.utime(path, (0, 0))
            while path.stat().st_mtime == 0:
                time.sleep(0.005)
            (driver,) = running_drivers(layout)
            assert driver.started_seconds > 0

        time.sleep(0.03)
        assert marks(layout) == []

    def test_several_drivers_run_at_once_the_oldest_first(self, layout: CacheLayout) -> None:
        with driving(layout, purpose="refresh"):
            leave_foreign_mark(layout)
            assert purposes(layout) == ["older", "refresh"]

    def test_a_cache_that_cannot_be_written_has_no_drivers(self, layout: CacheLayout) -> None:
        Path(layout.url, "drivers").write_bytes(b"a file in the folder's place")

        with pytest.raises(CacheError, match="writing failed"), driving(layout, purpose="ingest"):
            pass


HOLD = """
import sys, time
from latents.cache.drivers import driving
from latents.cache.layout import find_cache
with driving(find_cache(sys.argv[1]), purpose="to be killed"):
    print("ready", flush=True)
    time.sleep(60)
"""


class TestStaleMarks:
    def test_the_mark_of_a_killed_process_on_this_host_is_stale_at_once(
        self, layout: CacheLayout
    ) -> None:
        process = subprocess.Popen([sys.executable, "-c", HOLD, layout.url], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        assert purposes(layout) == ["to be killed"]

        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert purposes(layout) == []  # though nobody has reaped it yet
        process.communicate()
        assert purposes(layout) == []
        assert len(marks(layout)) == 1

    def test_another_process_of_the_same_number_is_not_the_driver(
        self, layout: CacheLayout
    ) -> None:
        leave_mark(layout, process_started=1)

        assert purposes(layout) == []

    @pytest.mark.parametrize(("age_seconds", "expected"), [(590, ["left"]), (610, [])])
    def test_the_mark_of_another_host_is_respected_for_ten_minutes(
        self, layout: CacheLayout, age_seconds: float, expected: list[str]
    ) -> None:
        leave_mark(layout, machine="another boot or host", age_seconds=age_seconds)

        assert purposes(layout) == expected

    @pytest.mark.parametrize(("age_seconds", "expected"), [(590, 1), (610, 0)])
    def test_a_damaged_mark_may_be_of_a_driver_that_lives(
        self, layout: CacheLayout, age_seconds: float, expected: int
    ) -> None:
        path = leave_mark(layout)
        path.write_bytes(b"{")
        os.utime(path, (time.time() - age_seconds,) * 2)

        assert len(running_drivers(layout)) == expected

    def test_a_silent_driver_of_this_host_that_lives_is_respected(
        self, layout: CacheLayout
    ) -> None:
        leave_mark(layout, age_seconds=10_000)

        assert purposes(layout) == ["left"]

    def test_ages_are_told_by_the_storages_clock(self, layout: CacheLayout) -> None:
        """A server whose clock is a day behind ours."""

        class Behind(LocalStorage):
            def list(self, folder: str) -> Iterator[StoredFile]:
                for file in super().list(folder):
                    yield StoredFile(
                        name=file.name,
                        num_bytes=file.num_bytes,
                        modified_seconds=file.modified_seconds - 86_400,
                    )

        leave_mark(layout, machine="another")
        behind = CacheLayout(Behind(Path(layout.url)))

        with collecting(behind) as found:
            assert [driver.purpose for driver in found.of("driver")] == ["left"]
        assert abs(found.now_seconds + 86_400 - time.time()) < 5


class TestHandshake:
    def test_a_gc_knows_of_the_drivers_that_were_there_before(self, layout: CacheLayout) -> None:
        with driving(layout, purpose="ingest"), collecting(layout) as found:
            assert [driver.purpose for driver in found.of("driver")] == ["ingest"]
        with collecting(layout) as found:
            assert found.of("driver") == ()

    def test_a_driver_waits_for_the_end_of_a_gc_and_says_so_once(
        self, layout: CacheLayout, caplog: pytest.LogCaptureFixture
    ) -> None:
        entered = threading.Event()

        def drive() -> None:
            with driving(layout, purpose="ingest"):
                entered.set()

        with collecting(layout):
            thread = threading.Thread(target=drive)
            thread.start()
            assert not entered.wait(0.1)
        thread.join()

        assert entered.is_set()
        waits = [record for record in caplog.records if "waiting until gc on" in record.message]
        assert len(waits) == 1
        assert waits[0].levelno == logging.WARNING

    def test_a_driver_gives_up_in_time_and_leaves_no_mark(self, layout: CacheLayout) -> None:
        with collecting(layout):
            with (
                pytest.raises(CacheError, match=r"gc on .* is still not over after 0 s"),
                driving(layout, purpose="ingest", wait_seconds=0),
            ):
                pass
            assert len(marks(layout)) == 1

    def test_a_driver_does_not_wait_for_a_gc_that_was_killed(self, layout: CacheLayout) -> None:
        leave_mark(layout, role="gc", process_started=1)

        with driving(layout, purpose="ingest", wait_seconds=0):
            pass

    def test_there_is_one_gc_at_a_time(self, layout: CacheLayout) -> None:
        with (
            collecting(layout),
            pytest.raises(CacheError, match="another gc is running"),
            collecting(layout),
        ):
            pass
        assert marks(layout) == []


class InterruptedStorage(LocalStorage):
    """Something else happens just before the storage is asked for the n-th time."""

    def __init__(self, root: Path, *, step: int, action: Callable[[], None]) -> None:
        super().__init__(root)
        self._steps = iter([None] * step + [action])

    def _take_step(self) -> None:
        if action := next(self._steps, None):
            action()

    def replace(self, name: str, content: bytes) -> None:
        self._take_step()
        super().replace(name, content)

    def list(self, folder: str) -> Iterator[StoredFile]:
        self._take_step()
        return super().list(folder)

    def read(self, name: str) -> bytes:
        self._take_step()
        return super().read(name)


@pytest.mark.parametrize("step", range(8))
def test_a_gc_that_starts_while_a_driver_starts_knows_of_it_or_is_waited_for(
    layout: CacheLayout, step: int
) -> None:
    seen: list[int] = []
    with ExitStack() as held:

        def start_gc() -> None:
            seen.append(len(held.enter_context(collecting(layout)).of("driver")))

        storage = InterruptedStorage(Path(layout.url), step=step, action=start_gc)
        try:
            with driving(CacheLayout(storage), purpose="ingest", wait_seconds=0):
                is_driving = True
        except CacheError:
            is_driving = False

    assert not is_driving or seen != [0]


@pytest.mark.parametrize("step", range(8))
def test_a_driver_that_starts_while_a_gc_starts_is_known_to_it_or_waits(
    layout: CacheLayout, step: int
) -> None:
    driving_since: list[bool] = []
    with ExitStack() as held:

        def start_driver() -> None:
            try:
                held.enter_context(driving(layout, purpose="ingest", wait_seconds=0))
            except CacheError:
                return
            driving_since.append(True)

        storage = InterruptedStorage(Path(layout.url), step=step, action=start_driver)
        with collecting(CacheLayout(storage)) as found:
            assert len(found.of("driver")) == len(driving_since)


RACE = """
import os, sys, time
from pathlib import Path
from latents.cache import drivers
from latents.cache.drivers import collecting, driving
from latents.cache.layout import find_cache
drivers.POLL_SECONDS = 0.0005
layout, role, others = find_cache(sys.argv[1]), sys.argv[2], {"driver": "gc", "gc": "driver"}
mine, theirs = (Path(layout.url, name) for name in (f"in {role}", f"in {others[role]}"))
entered, deadline = 0, time.monotonic() + 1
while time.monotonic() < deadline:
    with driving(layout, purpose="race") if role == "driver" else collecting(layout) as found:
        if role == "gc" and found.of("driver"):
            continue
        mine.touch()
        for _ in range(10):
            assert not theirs.exists(), "a gc that saw no driver ran beside one"
            time.sleep(0.002)
        mine.unlink()
        entered += 1
print(entered)
"""


def test_a_driver_and_a_gc_that_saw_none_never_run_at_once(layout: CacheLayout) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, layout.url, role],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("driver", "gc")
    ]
    outputs = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(int(out) > 3 for out, _ in outputs), outputs
