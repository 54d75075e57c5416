"""Ray clusters of several nodes on this machine, what runs on them, and who kills it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from pipeline.encoded import EncodedClip
from pipeline.engine_local import LocalEngine
from pipeline.engine_ray import RayEngine
from pipeline.job import EncodeJob, Task
from pipeline.run import Engine
from pipeline.stages import StageEvent
from pipeline.stop_request import StopRequest
from tests.pipeline.crash_job import digest_of
from tests.pipeline.small_jobs import DecodesInProcess, SmallCache, SmallJob

OBJECT_STORE_BYTES = 100 * 2**20
JOB = SmallJob(
    kl_vae=Path("identity"),
    overrides=(
        "clip.size=16",
        "clip.segment_seconds=1",
        "clip.tail_frames=8",
        "window.frames=8",
        "window.stride=8",
        "run.workers=0",
        "run.decode_attempts=10",
        "run.worker_attempts=10",
    ),
)
"""The cheapest clips there are, of a second each; and attempts enough for a killer's chances."""
CLIPS_PER_SCENE = 4


@contextmanager
def cluster_of(num_nodes: int) -> Iterator[Cluster]:
    """Nodes of one core each, the first of which is the head."""
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    head = node | {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(**node)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Cluster) -> Any:
    """One more node of one core."""
    return cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)


def ray_engine(cluster: Cluster) -> RayEngine:
    """The engine, as a command with ``--ray-address`` has it."""
    run = JOB.settings.run
    return RayEngine(
        num_workers=0,
        in_flight_bytes=run.in_flight_bytes,
        attempts=run.worker_attempts,
        address=cluster.address,
    )


def scenes(num_clips: int) -> str:
    """Sources that give so many clips."""
    return f"scenes:0:{num_clips // CLIPS_PER_SCENE}:{CLIPS_PER_SCENE}"


def local_digest(cache: Path, num_clips: int, *, job: SmallJob = JOB) -> str:
    """The content digest of a run in process."""
    with contextlib.ExitStack() as stack:
        import pytest

        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        result = SmallCache(cache, LocalEngine(num_workers=1)).run(job, scenes(num_clips))
    assert (result.num_clips_encoded, result.num_quarantined) == (num_clips, 0)
    return digest_of(cache)


class WatchedEngine:
    """An engine that tells someone how many clips were encoded so far."""

    def __init__(self, engine: Engine, look: Callable[[int], None]) -> None:
        self._engine, self._look = engine, look

    def start(self) -> None:
        self._engine.start()

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent, None, None]:
        num_clips = 0
        for event in self._engine.run(job, tasks, stop):
            num_clips += isinstance(event, EncodedClip)
            self._look(num_clips)
            yield event


def actors_on(node: Any) -> list[psutil.Process]:
    """Processes of our actors on a node."""
    (raylet,) = node.all_processes["raylet"]
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(raylet.process.pid).children()
        return [one for one in children if "codeActor" in _title(one)]
    return []


def decoders_on(node: Any) -> list[psutil.Process]:
    """Child processes of our decoding actors on a node."""
    found = []
    for actor in actors_on(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one for one in actor.children() if "pipeline.decode_child" in _title(one)]
    return found


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


KINDS = (("actor", actors_on), ("decoder", decoders_on))


class Killer:
    """Kills a worker whenever so many clips were encoded: an actor, or a process that decodes.

    Which one, and how soon after, is drawn by a seed.
    """

    def __init__(self, cluster: Cluster, *, clips_per_kill: int, seed: int) -> None:
        self._cluster = cluster
        self._clips_per_kill = clips_per_kill
        self._chance = random.Random(seed)
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self._due = threading.Semaphore(0)
        self._is_done = threading.Event()
        self._num_due = 0
        self.killed: list[str] = []
        """Kinds of the processes."""

    def look(self, num_clips: int) -> None:
        """So many clips were encoded."""
        if num_clips // self._clips_per_kill > self._num_due:
            self._num_due += 1
            self._due.release()

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._due.release()
        self._thread.join()

    def _kill(self) -> None:
        while self._due.acquire() and not self._is_done.is_set():
            time.sleep(self._chance.uniform(0.0, 0.3))
            found: list[psutil.Process] = []
            while not found and not self._is_done.is_set():
                name, processes_on = self._chance.choice(KINDS)
                nodes = self._cluster.list_all_nodes()
                found = [one for node in nodes for one in processes_on(node)]
                time.sleep(0.1)
            if found:
                victim = self._chance.choice(found)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGKILL)
                    self.killed.append(name)
