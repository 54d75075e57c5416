"""What `scale.py` measures of a log of commits, each step in a process of its own."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from synthetic_log import (
    CLIPS_PER_COMMIT,
    FPS,
    RECIPES,
    RUN,
    SEGMENTATION,
    VERSIONS,
    block_tables,
    commit_tables,
)

from latents.cache.checkpoint import COMMITS_PER_CHECKPOINT, make_checkpoint
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.log import CommitLog
from latents.cache.snapshot import load_snapshot
from latents.clip import ClipSpec
from latents.recipe import sha256_hex

SIZES = tuple(10**power for power in range(3, 8))
"""Latents rows of the logs."""
WITHOUT_CHECKPOINTS_UP_TO = 10**6
ROWS_OF_UP_TO = 10**6
NUM_RUNS = 3
NUM_COMMITS = 32
NUM_CHECKPOINTS = 5

Figures = dict[str, Any]


def measure_open(root: Path) -> Figures:
    """Opening at the head, as training does."""
    return timed(lambda: load_snapshot(find_cache(root)))


def measure_open_with_sources(root: Path) -> Figures:
    """Opening at the head and reading all sources, as an ingest does."""
    return timed(lambda: load_snapshot(find_cache(root)).sources)


def measure_open_without_checkpoints(root: Path) -> Figures:
    """Opening from the commits alone."""
    return timed(lambda: load_snapshot(CacheLayout(WithoutCheckpoints(root))))


class WithoutCheckpoints(LocalStorage):
    """A folder whose checkpoints are not there."""

    def read(self, name: str) -> bytes:
        """A file's content."""
        if name.startswith("checkpoints/"):
            raise FileNotFoundError(name)
        return super().read(name)


def measure_rows_of(root: Path) -> Figures:
    """All columns of the rows of one recipe, after opening."""
    snapshot = load_snapshot(find_cache(root))
    return timed(lambda: snapshot.rows_of(RECIPES["kl.audio"].digest))


def measure_head(root: Path) -> Figures:
    """The latest commit's number, of a log that nothing is known of."""
    return timed(lambda: CommitLog(find_cache(root)).head())


def measure_commit(root: Path) -> Figures:
    """Commits of 512 rows on top, each durable; they are removed again."""
    layout = find_cache(root)
    head = CommitLog(layout).head()
    log = CommitLog(layout, seen=head)
    numbers = range(head + 1, head + 1 + NUM_COMMITS)
    if any((number + 1) % COMMITS_PER_CHECKPOINT == 0 for number in numbers):
        raise ValueError(f"a checkpoint falls due within {NUM_COMMITS} commits of {head}")
    block = block_tables(numbers[0] // COMMITS_PER_CHECKPOINT)
    figures = [timed(partial(log.append, commit_tables(block, number), RUN)) for number in numbers]
    for number in reversed(numbers):
        layout.storage.delete(layout.commit(number))
    return {
        "seconds": statistics.median(one["seconds"] for one in figures),
        "cpu_seconds": statistics.median(one["cpu_seconds"] for one in figures),
        "slowest_seconds": max(one["seconds"] for one in figures),
    }


def measure_plan(root: Path, *, new_every: int | None) -> Figures:
    """Planning an ingest of all sources, with every so many-th replaced by a new one."""
    # Here, not at the top: the other steps' memory is measured without the pipeline.
    from pipeline.job_plan import Wanted
    from pipeline.plan import plan_job
    from pipeline.sources import HashedSource, Source

    snapshot = load_snapshot(find_cache(root))
    sources = [
        HashedSource(
            source=Source(uri=uri, path=Path(uri), scene=None),
            size=size,
            mtime_ns=mtime_ns,
            digest=digest,
        )
        for uri, digest, size, mtime_ns in files_found(snapshot.commit + 1, new_every)
    ]
    wanted = Wanted(
        recipes=RECIPES,
        clip=ClipSpec(fps=FPS),
        segmentation=SEGMENTATION,
        admission=None,
        decode_versions=VERSIONS,
        encode_versions=VERSIONS,
    )
    # What an ingest has read by then, to know which files it need not hash again.
    num_on_record = snapshot.sources.num_rows
    before = peak_rss_bytes()
    watch = Stopwatch()
    plan = plan_job(sources, snapshot, wanted, reason_for=lambda field, recipe: "new encoder")
    return {
        **watch.figures(),
        "peak_rss_bytes_before": before,
        "num_sources_on_record": num_on_record,
        "num_present": plan.num_present,
        "num_to_decode": len(plan.to_decode),
    }


def files_found(num_commits: int, new_every: int | None) -> Iterator[tuple[str, str, int, int]]:
    """URI, digest, size and time of the sources of the log, some of them replaced by new ones."""
    for first in range(0, num_commits, COMMITS_PER_CHECKPOINT):
        rows = block_tables(first // COMMITS_PER_CHECKPOINT)["sources"]
        num_rows = min(num_commits - first, COMMITS_PER_CHECKPOINT) * CLIPS_PER_COMMIT
        columns = ("uri", "digest", "size", "mtime_ns")
        found = zip(*(rows[name][:num_rows].to_pylist() for name in columns), strict=True)
        for number, (uri, digest, size, mtime_ns) in enumerate(found):
            is_new = new_every is not None and number % new_every == 0
            name, content = (f"{uri}.new", sha256_hex(uri.encode())) if is_new else (uri, digest)
            yield name, content, size, mtime_ns


def measure_checkpoint(root: Path) -> Figures:
    """Writing a checkpoint again, durably; by commit, of which it is written every 256th."""
    layout = find_cache(root)
    last = CommitLog(layout).head()
    numbers = range(COMMITS_PER_CHECKPOINT - 1, last + 1, COMMITS_PER_CHECKPOINT)
    figures = [timed(partial(make_checkpoint, layout, n)) for n in numbers[-NUM_CHECKPOINTS:]]
    whole = min(figures, key=lambda one: float(one["seconds"]))
    return {
        "seconds": whole["seconds"] / COMMITS_PER_CHECKPOINT,
        "cpu_seconds": whole["cpu_seconds"] / COMMITS_PER_CHECKPOINT,
        "seconds_of_checkpoint": whole["seconds"],
    }


class Stopwatch:
    """Time since it was made, and that of all processors together."""

    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def figures(self) -> Figures:
        """Seconds so far."""
        return {
            "seconds": time.perf_counter() - self._began,
            "cpu_seconds": time.process_time() - self._cpu_began,
        }


def timed(work: Callable[[], object]) -> Figures:
    """Time of a call."""
    watch = Stopwatch()
    work()
    return watch.figures()


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that is measured."""

    measure: Callable[[Path], Figures]
    first: int = 0
    last: int = SIZES[-1]
    """Smallest and largest log, in rows, that it is measured of."""
    num_runs: int = NUM_RUNS


STEPS = {
    "open": Step(measure=measure_open),
    "open_with_sources": Step(measure=measure_open_with_sources),
    "open_without_checkpoints": Step(
        measure=measure_open_without_checkpoints, last=WITHOUT_CHECKPOINTS_UP_TO
    ),
    "commit": Step(measure=measure_commit),
    "checkpoint_by_commit": Step(measure=measure_checkpoint, first=10**6, num_runs=1),
    "rows_of_one_recipe": Step(measure=measure_rows_of, last=ROWS_OF_UP_TO),
    "head": Step(measure=measure_head),
    "plan_all_present": Step(measure=partial(measure_plan, new_every=None), num_runs=2),
    "plan_one_percent_new": Step(measure=partial(measure_plan, new_every=100), num_runs=2),
}
