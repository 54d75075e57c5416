"""What is left of a cache when a driver dies, or its disk fills, at any step."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latents.cache.gc import collect_garbage, plan_gc
from latents.cache.layout import create_cache
from latents.cache.refs import read_ref
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from tests.pipeline.crash_job import (
    NUM_SOURCES,
    Fault,
    digest_of,
    forkserver,
    ingest_slowly,
    ingest_with_fault,
    kill_at_random,
    run_in_child,
    run_ingest,
    write_sources,
)

ROOT = Path(__file__).parents[2]
NUM_STEPS = 100
"""More durable calls than an undisturbed ingest makes; a test sees to that."""
QUICK_STEPS = range(5, NUM_STEPS - 20, 16)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "videos")


@pytest.fixture
def undisturbed(tmp_path: Path, sources: Path) -> str:
    run_ingest(tmp_path / "undisturbed", sources)
    return digest_of(tmp_path / "undisturbed")


def check_recovery(cache: Path, sources: Path, undisturbed: str) -> None:
    """The same command finishes the work; nothing is lost, doubled or damaged."""
    run_ingest(cache, sources)
    layout = create_cache(cache)
    assert digest_of(cache) == undisturbed
    assert verify_cache(layout) == []
    ref = read_ref(layout, "current")
    assert ref is not None
    assert ref.commit == load_snapshot(layout).commit
    collect_garbage(layout, plan_gc(layout, grace_seconds=0), run={})
    assert plan_gc(layout, grace_seconds=0).removable == ()
    assert verify_cache(layout) == []
    assert digest_of(cache) == undisturbed


def crash(cache: Path, sources: Path, fault: Fault, step: int) -> None:
    status = run_in_child(ingest_with_fault, cache, sources, fault, step)
    expected = 4 if fault == "disk full" else -signal.SIGKILL
    assert status in (expected, 3)
    if (cache / "cache.json").exists():
        assert verify_cache(create_cache(cache)) == []


def test_the_steps_tried_are_more_than_an_ingest_has(tmp_path: Path, sources: Path) -> None:
    cache = tmp_path / "cache"

    assert run_in_child(ingest_with_fault, cache, sources, "killed before", NUM_STEPS) == 3
    assert load_snapshot(create_cache(cache)).sources.num_rows == NUM_SOURCES


@pytest.mark.parametrize("step", QUICK_STEPS)
@pytest.mark.parametrize("fault", ["killed before", "killed after"])
def test_a_driver_killed_at_some_steps_loses_and_doubles_nothing(
    tmp_path: Path, sources: Path, undisturbed: str, fault: Fault, step: int
) -> None:
    crash(tmp_path / "cache", sources, fault, step)

    check_recovery(tmp_path / "cache", sources, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed before", "killed after", "disk full"])
@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_a_fault_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, sources: Path, undisturbed: str, fault: Fault, step: int
) -> None:
    crash(tmp_path / "cache", sources, fault, step)

    check_recovery(tmp_path / "cache", sources, undisturbed)


@pytest.mark.parametrize("step", QUICK_STEPS)
def test_a_disk_that_fills_gives_a_clear_error_and_leaves_the_cache_intact(
    tmp_path: Path, sources: Path, undisturbed: str, step: int
) -> None:
    crash(tmp_path / "cache", sources, "disk full", step)

    check_recovery(tmp_path / "cache", sources, undisturbed)


def test_a_full_disk_gives_a_clear_error_and_work_goes_on_once_there_is_room(
    tmp_path: Path, sources: Path, undisturbed: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # A file system of its own needs a namespace of its own, unless we are root.
    alone = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk; faults at each step are tried")
    job = shlex.join([sys.executable, "-m", "tests.pipeline.crash_job", str(disk), str(sources)])
    mount = f"mount -t tmpfs -o size=4m none {shlex.quote(str(disk))}"

    result = subprocess.run(
        [*alone, "sh", "-c", f"{mount} && {job}"], capture_output=True, text=True, cwd=ROOT
    )

    error, damaged, digest = result.stdout.splitlines()
    assert "No space left on device" in error
    assert "run the same command again" in error
    assert damaged == "damaged: []"
    assert digest == f"digest: {undisturbed}"


@pytest.mark.slow
def test_two_drivers_killed_fifty_times_lose_and_double_nothing(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "videos", num_sources=200)
    run_ingest(tmp_path / "undisturbed", sources)

    kill_at_random(tmp_path / "cache", sources, num_kills=50, seed=0)

    check_recovery(tmp_path / "cache", sources, digest_of(tmp_path / "undisturbed"))


def test_two_drivers_at_once_share_the_work(
    tmp_path: Path, sources: Path, undisturbed: str
) -> None:
    cache = tmp_path / "cache"
    drivers = [
        forkserver().Process(target=ingest_slowly, args=(cache, sources, 0.01)) for _ in range(2)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()

    assert [driver.exitcode for driver in drivers] == [0, 0]
    check_recovery(cache, sources, undisturbed)
