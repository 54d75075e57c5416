"""An ingest whose clips cost nothing, run in a process that dies or fails at a chosen step.

The steps are the system calls by which anything becomes durable: fsync, link, rename, unlink.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latents.cache.layout import create_cache
from latents.cache.snapshot import content_digest, load_snapshot
from latents.cache.verify import verify_cache
from latents.clip import ClipKey, WindowGrid
from latents.errors import CacheError
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import sha256_hex
from pipeline.decode import SourceTask
from pipeline.encoded import EncodedClip, channel_sums
from pipeline.ingest import ingest
from pipeline.job import EncodeJob, Task
from pipeline.recipes import Encoders
from pipeline.run import JobResult
from pipeline.settings import IngestSettings, RunSettings
from pipeline.sources import find_sources
from pipeline.stages import SourceFinished, StageEvent
from pipeline.stop_request import StopRequest

NUM_SOURCES = 6
CLIPS_PER_COMMIT = 2
DURABLE_CALLS = ("fsync", "link", "replace", "unlink")
Fault = Literal["killed before", "killed after", "disk full"]

_FRAMES, _GRID = 8, WindowGrid(frames=4, stride=1, first_frame=0, num_windows=5)
_CLIP_BYTES = (_FRAMES + _GRID.num_windows) * 4 * 2 * 2 * 2


class FreeEngine:
    """Gives a clip for each task at once; its tensors are a function of the source's digest."""

    def __init__(self, *, pause_seconds: float = 0.0) -> None:
        self._pause_seconds = pause_seconds

    def start(self) -> None:
        """Nothing has to be started."""

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent, None, None]:
        """One clip a source."""
        for task in tasks:
            time.sleep(self._pause_seconds)
            yield free_clip(task)
            yield SourceFinished(task=task, num_segments=1)


def free_clip(task: Task) -> EncodedClip:
    """The clip of a source."""
    assert isinstance(task, SourceTask)
    generator = np.random.default_rng(int(task.digest[:8], 16))
    tensors = {
        "kl.video": generator.normal(size=(_FRAMES, 4, 2, 2)).astype(np.float16),
        "kl.audio": generator.normal(size=(_GRID.num_windows, 4, 2, 2)).astype(np.float16),
    }
    return EncodedClip(
        key=ClipKey(source_digest=task.digest, start_frame=0, fps=10),
        segment=0,
        tensors=tensors,
        channel_sums={field: channel_sums(tensor) for field, tensor in tensors.items()},
        grid=_GRID,
        sample_rate=16000,
        loudness_dbfs=-20.0,
        sound_first_frame=0,
        sound_stop_frame=_FRAMES,
        device="cpu",
        encode_seconds=0.0,
        num_kl_images=_FRAMES + _GRID.num_windows,
    )


def write_sources(folder: Path, num_sources: int = NUM_SOURCES) -> Path:
    """Files that pass for videos."""
    folder.mkdir()
    for index in range(num_sources):
        (folder / f"{index}.mp4").write_bytes(f"video {index}".encode())
    return folder


def run_ingest(cache: Path | str, sources: Path, *, pause_seconds: float = 0.0) -> JobResult:
    """Ingests all sources, a few clips a commit."""
    encoder = EncoderIdentity(
        config={}, scaling_factor=1.0, shift_factor=0.0, weights_digest=sha256_hex(b"weights")
    )
    return ingest(
        find_sources([str(sources)]),
        layout=create_cache(cache),
        settings=IngestSettings(
            run=RunSettings(workers=1, shard_bytes=CLIPS_PER_COMMIT * _CLIP_BYTES)
        ),
        encoders=Encoders(kl_vae=encoder, modal=None),
        levels=("kl",),
        engine=FreeEngine(pause_seconds=pause_seconds),
        device="cpu",
    )


def digest_of(cache: Path | str) -> str:
    """Content digest of everything that lives at the head; it sees doubled clips too."""
    snapshot = load_snapshot(create_cache(cache))
    rows: list[dict[str, Any]] = []
    for file in snapshot.latents_files:
        rows.extend(file.read().select(["clip", "field", "shape", "digest"]).to_pylist())
    return content_digest(rows)


def ingest_with_fault(cache: Path, sources: Path, fault: Fault, step: int) -> None:
    """Runs in a process of its own: meets a fault at its n-th durable call.

    Exits with 3 where there are fewer, and with 4 where a full disk gave a clear error.
    """
    with _silence(), _faulty(fault, step):
        try:
            run_ingest(cache, sources)
        except CacheError as error:
            sys.exit(4 if "No space left" in str(error) else 5)
    sys.exit(3)


def ingest_slowly(cache: Path | str, sources: Path, pause_seconds: float) -> None:
    """Runs in a process of its own, slowly enough to be killed in the middle."""
    with _silence():
        run_ingest(cache, sources, pause_seconds=pause_seconds)


@contextmanager
def _faulty(fault: Fault, step: int) -> Iterator[None]:
    calls = iter(range(1_000_000))

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **options: Any) -> Any:
            is_chosen = next(calls) == step
            if is_chosen and fault == "disk full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if is_chosen and fault == "killed before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if is_chosen:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return faulty

    before = {name: getattr(os, name) for name in DURABLE_CALLS}
    for name, call in before.items():
        setattr(os, name, wrap(call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(os, name, call)


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere:
        sys.stderr = nowhere
        yield


def fill_a_disk(disk: Path, sources: Path) -> None:
    """Ingests onto a small disk until it is full, makes room, and ingests again.

    Prints the error, the damage found in the full cache, and the content digest at the end.
    """
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
    with _silence():
        try:
            run_ingest(disk / "cache", sources)
        except CacheError as error:
            print(f"error: {error}")
        print(f"damaged: {verify_cache(create_cache(disk / 'cache'))}")
        ballast.unlink()
        run_ingest(disk / "cache", sources)
        print(f"digest: {digest_of(disk / 'cache')}")


def forkserver() -> ForkServerContext:
    """Starts processes that have this module imported already, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run_in_child(target: Callable[..., None], *arguments: Any) -> int:
    """Exit status of a function in a process of its own; negative: the signal that ended it."""
    process = forkserver().Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_at_random(cache: Path, sources: Path, *, num_kills: int, seed: int) -> int:
    """Two drivers at once, killed and started again until they have been killed often enough.

    Returns how many commits there were when the last one died.
    """
    chance = random.Random(seed)
    context = forkserver()
    drivers: list[Any] = [None, None]
    num_left = num_kills
    while num_left:
        for place, driver in enumerate(drivers):
            if driver is None or not driver.is_alive():
                drivers[place] = context.Process(target=ingest_slowly, args=(cache, sources, 0.002))
                drivers[place].start()
        time.sleep(chance.uniform(0.0, 0.25))
        victim = chance.choice(drivers)
        if victim.is_alive():
            victim.kill()
            victim.join()
            num_left -= 1
    for driver in drivers:
        driver.join()
    return load_snapshot(create_cache(cache)).commit


if __name__ == "__main__":
    fill_a_disk(Path(sys.argv[1]), Path(sys.argv[2]))
