"""Measure how the commit log grows: opening, planning, committing and its checkpoints.

Synthetic logs of 10^3 to 10^7 latents rows are built one on top of the other, without tensors and
without fsync; what is measured reads and writes them as ever, from the page cache. Each figure
is the fastest of two or three fresh processes.

    python benchmarks/scale.py --folder /fast/disk/scale
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_result
from scale_steps import NUM_RUNS, SIZES, STEPS, Figures, peak_rss_bytes
from synthetic_log import ROWS_PER_COMMIT, extend_log, num_commits_of

from latents.cache.checkpoint import COMMITS_PER_CHECKPOINT
from latents.cache.layout import create_cache
from latents.cache.local_storage import LocalStorage

LIBRARIES = ("pyarrow", "numpy")
BUSY_SHARE = 0.2
"""Of all processors' time; with more than this, others are measured too."""


def build(root: Path, num_rows: int) -> Figures:
    """Makes the log this long."""
    began = time.perf_counter()
    checkpoint_seconds = extend_log(root, num_commits=num_commits_of(num_rows))
    return {"seconds": time.perf_counter() - began, "checkpoint_seconds": checkpoint_seconds}


def in_child(root: Path, *arguments: str) -> Figures:
    """What one step measures in a process of its own, with the most memory it held."""
    command = [sys.executable, __file__, "--folder", str(root), "--step", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def run_step(root: Path, name: str, *arguments: str) -> Figures:
    """Measures in this process, which has done nothing else."""
    figures: Figures = {}
    if name == "build":
        figures = build(root, int(arguments[0]))
    elif name != "imports":
        figures = STEPS[name].measure(root)
    return {**figures, "peak_rss_bytes": peak_rss_bytes()}


def wait_until_idle(patience_seconds: float) -> None:
    """Returns when the processors have little else to do, or patience has run out."""
    stop = time.monotonic() + patience_seconds
    while time.monotonic() < stop:
        before = processor_ticks()
        time.sleep(1)
        idle, total = (now - then for now, then in zip(processor_ticks(), before, strict=True))
        if 1 - idle / total < BUSY_SHARE:
            return


def processor_ticks() -> tuple[int, int]:
    """Idle and all time of the processors since the machine started."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def measure_size(root: Path, num_rows: int, *, patience_seconds: float) -> Figures:
    """Every step at one size; of several runs the fastest, whose memory is the largest of all."""
    built = in_child(root, "build", str(num_rows))
    found: Figures = {"build": rounded(built)}
    for name, step in STEPS.items():
        if step.first <= num_rows <= step.last:
            runs = []
            for _ in range(step.num_runs):
                wait_until_idle(patience_seconds)
                runs.append(in_child(root, name))
            best = min(runs, key=lambda figures: float(figures["seconds"]))
            peak = max(figures["peak_rss_bytes"] for figures in runs)
            found[name] = rounded({**best, "peak_rss_bytes": peak})
            sys.stderr.write(f"{num_rows} {name} {found[name]}\n")
    return found


def commits_side_by_side(largest: Path, smallest: Path) -> Figures:
    """Commits on the largest and the smallest log in turn, each the fastest of several runs."""
    pairs = [
        [in_child(root, "commit")["seconds"] for root in (largest, smallest)]
        for _ in range(NUM_RUNS)
    ]
    on_largest, on_smallest = map(min, zip(*pairs, strict=True))
    return rounded(
        {
            "seconds_on_largest": on_largest,
            "seconds_on_smallest": on_smallest,
            "ratio": on_largest / on_smallest,
        }
    )


def rounded(figures: Figures) -> Figures:
    """Seconds to four significant digits."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in figures.items()
    }


def growth(sizes: dict[int, Figures], name: str) -> Figures:
    """How time and memory grow: the power of the number of rows between the two largest sizes."""
    having = [num_rows for num_rows, found in sizes.items() if name in found]
    smaller, larger = having[-2:]
    return {
        "between_rows": [smaller, larger],
        **{
            f"exponent_of_{measure}": round(
                math.log(sizes[larger][name][measure] / sizes[smaller][name][measure])
                / math.log(larger / smaller),
                3,
            )
            for measure in ("seconds", "cpu_seconds", "peak_rss_bytes")
        },
    }


def measure_all(root: Path, largest: int, *, patience_seconds: float) -> Figures:
    """Builds and measures every size up to the largest."""
    log, smallest = root / "log", root / "smallest"
    create_cache(log)
    loads = [os.getloadavg()[0]]
    sizes: dict[int, Figures] = {}
    for num_rows in (size for size in SIZES if size <= largest):
        sizes[num_rows] = measure_size(log, num_rows, patience_seconds=patience_seconds)
        loads.append(os.getloadavg()[0])
        if not smallest.exists():
            shutil.copytree(log, smallest)
    return {
        "rows_per_commit": ROWS_PER_COMMIT,
        "commits_per_checkpoint": COMMITS_PER_CHECKPOINT,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "peak_rss_bytes_of_imports_alone": in_child(log, "imports")["peak_rss_bytes"],
        "load_average_1min": {"least": min(loads), "most": max(loads)},
        "bytes_on_disk": sum(file.num_bytes for file in LocalStorage(log).list("")),
        "sizes": {str(num_rows): found for num_rows, found in sizes.items()},
        "growth": {
            name: growth(sizes, name)
            for name in STEPS
            if sum(name in found for found in sizes.values()) > 1
        },
        "commit_side_by_side": commits_side_by_side(log, smallest),
    }


def main() -> None:
    """Measure, and write benchmarks/results/scale.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the log is built; default: temporary")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most latents rows")
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        help="longest wait for idle processors before each run, in seconds",
    )
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        sys.stdout.write(json.dumps(run_step(arguments.folder, *arguments.step)) + "\n")
        return
    root = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="scale-"))
    try:
        figures = measure_all(root, arguments.largest, patience_seconds=arguments.patience)
    finally:
        shutil.rmtree(root)
    write_result("scale", figures, libraries=LIBRARIES, as_line=arguments.json)


if __name__ == "__main__":
    main()
