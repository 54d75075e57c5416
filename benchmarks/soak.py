"""Ingest thousands of small clips while processes are killed, and count what is lost or doubled.

Every few seconds one of the children that decode is killed, and now and then the driver itself,
which is then started again by the same command, until it says that all is done. Scenes and files
are ingested with the identity encoder, so that most of the work is decoding and committing. Memory
and open files of the driver are sampled every second: ``growth`` is the mean of the last quarter of
the longest-lived driver's samples over that of the second quarter.

    python benchmarks/soak.py --num-scenes 4500 --num-files 500 --json
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import write_result
from varied_files import vary

from latents.cache.layout import find_cache
from latents.cache.reader import open_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from pipeline.synth import synthesise

LIBRARIES = ("av", "decord", "pyarrow", "torch", "ray")
SIZE = 32
SECONDS = 2
SEED = 0
GIVEN_UP = 3
"""Exit status of an ingest that is done, with quarantined clips."""


@dataclass(slots=True)
class Watched:
    """What was seen of one driver, second by second."""

    rss_bytes: list[int] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)


def main() -> None:
    """Measure, and write benchmarks/results/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-scenes", type=int, default=4500)
    parser.add_argument("--num-files", type=int, default=500)
    parser.add_argument("--child-seconds", type=float, default=3.0, help="between kills of one")
    parser.add_argument("--driver-seconds", type=float, default=120.0, help="between its kills")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmldm-soak-"))
    try:
        videos = make_videos(work, arguments.num_files)
        scenes = f"scenes:{SEED}:{arguments.num_scenes}:{SECONDS}"
        command = ingest_command(arguments, [scenes, str(videos)], work / "cache")
        figures = soak(command, arguments)
        wanted = arguments.num_scenes + arguments.num_files
        write_result(
            "soak",
            {**figures, **outcome(work / "cache", wanted)},
            libraries=LIBRARIES,
            as_line=arguments.json,
        )
    finally:
        shutil.rmtree(work)


def make_videos(work: Path, num_files: int) -> Path:
    """So many files, few of which show something new."""
    originals, videos = work / "originals", work / "videos"
    synthesise(originals, num_clips=min(num_files, 10), seconds=SECONDS, seed=SEED)
    videos.mkdir()
    found = sorted(originals.glob("*.mp4"))
    for number in range(num_files):
        vary(found[number % len(found)], videos / f"{number:05d}.mp4", number=number)
    return videos


def ingest_command(arguments: argparse.Namespace, sources: list[str], cache: Path) -> list[str]:
    """The command that is run again until it has nothing left to do."""
    settings = {
        "kl_vae.source": "identity",
        "clip.size": SIZE,
        "run.workers": arguments.workers,
        "run.commit_seconds": 5,
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "mmldm", "ingest", *sources, "--cache", str(cache), "--json"]
    return [*command, "--engine", arguments.engine, *options]


def soak(command: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the command through all kills to its end."""
    started, rng = time.monotonic(), random.Random(SEED)
    kills: Counter[str] = Counter()
    watched: list[Watched] = []
    while True:
        seen = Watched()
        watched.append(seen)
        driver = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        status = drive(driver, seen, kills, rng, arguments)
        if status == 0:
            break
        if status == GIVEN_UP:  # a clip whose decoder was killed twice, which the next run tries
            kills["runs with a clip given up"] += 1
            continue
        if status != -signal.SIGKILL:
            assert driver.stderr is not None
            raise SystemExit(f"the ingest ended with {status}: {driver.stderr.read().decode()}")
        kills["driver"] += 1
    longest = max(watched, key=lambda one: len(one.rss_bytes))
    return {
        "engine": arguments.engine,
        "seconds": time.monotonic() - started,
        "kills": dict(kills),
        "driver_rss_growth": growth(longest.rss_bytes),
        "driver_open_files_growth": growth(longest.open_files),
        "driver_rss_peak_bytes": max(max(one.rss_bytes, default=0) for one in watched),
        "driver_seconds_watched": len(longest.rss_bytes),
    }


def drive(
    driver: subprocess.Popen[bytes],
    seen: Watched,
    kills: Counter[str],
    rng: random.Random,
    arguments: argparse.Namespace,
) -> int:
    """Kills children, and the driver in the end, unless it ends before; its exit status."""
    end = time.monotonic() + arguments.driver_seconds * rng.uniform(0.5, 1.5)
    next_kill = time.monotonic() + arguments.child_seconds
    for tick in itertools.count(1):
        with suppress(subprocess.TimeoutExpired):
            return driver.wait(0.5)
        if tick % 2 == 0:
            watch(driver.pid, seen)
        if time.monotonic() >= end:
            os.killpg(driver.pid, signal.SIGKILL)
            return driver.wait()
        if time.monotonic() >= next_kill:
            next_kill += arguments.child_seconds
            children = [pid for pid, words in descendants(driver.pid) if "decode_child" in words]
            if children:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(children), signal.SIGKILL)
                    kills["child"] += 1
    raise AssertionError("unreachable")


def watch(pid: int, seen: Watched) -> None:
    """Notes what a process holds now, if it is still there."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        num_files = len(os.listdir(f"/proc/{pid}/fd"))
        seen.rss_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        seen.open_files.append(num_files)


def descendants(root: int) -> Iterator[tuple[int, str]]:
    """Processes below one, and their command lines."""
    parents: dict[int, int] = {}
    words: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and pid != root:
            yield pid, words.get(pid, "")


def growth(samples: list[int]) -> float | None:
    """The last quarter over the second; None where there are too few."""
    quarter = len(samples) // 4
    if quarter < 5:
        return None
    return statistics.mean(samples[-quarter:]) / statistics.mean(samples[quarter : 2 * quarter])


def outcome(cache: Path, num_wanted: int) -> dict[str, Any]:
    """What is in the cache, beside what should be."""
    level = open_cache(cache, level="kl")
    snapshot = load_snapshot(find_cache(cache))
    sources = Counter(level.clips.sources().to_pylist())
    clips = Counter(level.clips.clip_keys())
    return {
        "num_sources_wanted": num_wanted,
        "num_sources": len(sources),
        "lost": num_wanted - len(sources),
        "doubled": sum(count - 1 for count in clips.values()),
        "quarantined": len(snapshot.open_quarantine()),
        "damaged": len(verify_cache(find_cache(cache))),
    }


if __name__ == "__main__":
    main()
