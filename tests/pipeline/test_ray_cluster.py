"""A cluster of three nodes: what leaves it, is killed in it, or drives it, costs no clip."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from latents.cache.layout import create_cache
from latents.cache.log import CommitLog
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from tests.pipeline.crash_job import digest_of
from tests.pipeline.small_cluster import (
    JOB,
    Killer,
    WatchedEngine,
    actors_on,
    add_node,
    cluster_of,
    local_digest,
    ray_engine,
    scenes,
)
from tests.pipeline.small_jobs import SMALL, SmallCache

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]

NUM_CLIPS = 120
SOAK_CLIPS = int(os.environ.get("MMLDM_SOAK_CLIPS", "200"))
"""Clips of the run with a killer; a thousand see more than a hundred kills."""
CLIPS_PER_KILL = 8


def check(cache: Path, num_clips: int) -> None:
    """Nothing is lost, doubled, damaged or given up, and all is what one process makes."""
    layout = create_cache(cache)
    snapshot = load_snapshot(layout)
    assert snapshot.open_quarantine() == []
    assert len(snapshot.index["clip"]) == 2 * num_clips
    assert digest_of(cache) == local_digest(cache.parent / "local", num_clips)
    assert verify_cache(layout) == []


def test_a_node_that_leaves_takes_nothing_along_and_one_that_comes_is_used(
    tmp_path: Path,
) -> None:
    were_used = []

    with cluster_of(3) as cluster:
        first = next(iter(cluster.worker_nodes))
        came = []

        def look(num_clips: int) -> None:
            if num_clips == NUM_CLIPS // 4 and first in cluster.worker_nodes:
                cluster.remove_node(first, allow_graceful=False)
            if num_clips == NUM_CLIPS // 2 and not came:
                came.append(add_node(cluster))
            if came and actors_on(came[0]):
                were_used.append(num_clips)

        engine = WatchedEngine(ray_engine(cluster), look)
        result = SmallCache(tmp_path / "ray", engine).run(JOB, scenes(NUM_CLIPS))

    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS, 0)
    assert were_used
    check(tmp_path / "ray", NUM_CLIPS)


def test_workers_that_are_killed_again_and_again_cost_no_clip(tmp_path: Path) -> None:
    started = time.monotonic()

    with (
        cluster_of(3) as cluster,
        Killer(cluster, clips_per_kill=CLIPS_PER_KILL, seed=0) as killer,
    ):
        engine = WatchedEngine(ray_engine(cluster), killer.look)
        result = SmallCache(tmp_path / "ray", engine).run(JOB, scenes(SOAK_CLIPS))

    seconds = time.monotonic() - started
    kinds = dict(Counter(killer.killed))
    sys.stdout.write(f"{SOAK_CLIPS} clips, {seconds:.0f} s, killed: {kinds}\n")
    assert (result.num_clips_encoded, result.num_quarantined) == (SOAK_CLIPS, 0)
    # The last ones may be due when nothing is left to kill.
    assert len(killer.killed) >= SOAK_CLIPS // CLIPS_PER_KILL - 2
    check(tmp_path / "ray", SOAK_CLIPS)


def test_a_driver_that_is_killed_and_started_again_finishes_the_work(tmp_path: Path) -> None:
    cache = tmp_path / "ray"
    overrides = [f"--set={one}" for one in (*SMALL, *JOB.overrides, "run.commit_seconds=1")]
    options = ["--cache", str(cache), "--kl-vae", "identity", "--engine", "ray", *overrides]

    with cluster_of(3) as cluster:
        command = [sys.executable, "-m", "mmldm", "ingest", scenes(NUM_CLIPS), *options]
        command += ["--ray-address", cluster.address]
        driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while driver.poll() is None and CommitLog(create_cache(cache)).head() < 3:
            time.sleep(0.1)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
        num_rows = len(load_snapshot(create_cache(cache)).index["clip"])
        assert 0 < num_rows < 2 * NUM_CLIPS

        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    check(cache, NUM_CLIPS)
