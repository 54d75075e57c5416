"""Measure what ingest adds to decoding: with an encoder that costs next to nothing.

``overhead`` is the seconds a clip of `mmldm ingest` with the identity encoder over those of the
same decoding (pictures, sound, resizing) of the same files in a plain pool of as many processes,
whose clips are thrown away. Start-up is left out by taking the difference of a large and a small
run. Both are measured in turn, and medians are compared; ``overhead_ray`` is the same on Ray.

``images_per_window`` counts what the KL-VAE encodes for each window at stride 1 on clips of 10 s.
``memory_growth`` is the peak memory of an ingest of many small scenes over that of few.

    python benchmarks/ingest.py --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from record import write_result
from varied_files import vary

from pipeline.decode import SourceDecoded, SourceTask, decode_source
from pipeline.settings import IngestSettings
from pipeline.synth import synthesise

LIBRARIES = ("av", "decord", "torch", "ray", "pyarrow")
NUM_SHOWN = 12
"""Videos that show something else; the others differ from these in their bytes alone."""


def main() -> None:
    """Measure, and write benchmarks/results/ingest.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-clips", type=int, default=200, help="beyond the small run's")
    parser.add_argument("--num-few", type=int, default=20, help="of the small run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each video")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many-scenes", type=int, default=2000, help="for memory; few are 100")
    parser.add_argument("--engines", nargs="*", default=["local", "ray"])
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmldm-ingest-"))
    try:
        figures: dict[str, Any] = {"workers": arguments.workers}
        figures |= measure_overhead(work, arguments)
        figures |= measure_images(work)
        figures |= measure_memory(work, arguments.many_scenes)
        write_result("ingest", figures, libraries=LIBRARIES, as_line=arguments.json)
    finally:
        shutil.rmtree(work)


def measure_overhead(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds a clip of both, and their ratio, for each engine."""
    few = make_videos(work / "few", arguments.num_few, seconds=arguments.seconds, first=10**6)
    many = make_videos(
        work / "many", arguments.num_clips + arguments.num_few, seconds=arguments.seconds, first=0
    )
    rates: dict[str, list[float]] = {name: [] for name in ("pool", *arguments.engines)}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        decode_in_pool(pool, few)
        for repeat in range(arguments.repeats):
            seconds = decode_in_pool(pool, many) - decode_in_pool(pool, few)
            rates["pool"].append(seconds / arguments.num_clips)
            for engine in arguments.engines:
                caches = [work / f"{engine}-{repeat}-{size}" for size in ("few", "many")]
                run = partial(ingest_seconds, engine=engine, workers=arguments.workers)
                seconds = run(many, caches[1]) - run(few, caches[0])
                rates[engine].append(seconds / arguments.num_clips)
                for cache in caches:
                    shutil.rmtree(cache)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    names = {"local": "overhead", "ray": "overhead_ray"}
    overheads = {names[one]: medians[one] / medians["pool"] for one in arguments.engines}
    return {"num_clips": arguments.num_clips, **overheads, "seconds_a_clip": rates}


def make_videos(folder: Path, num: int, *, seconds: float, first: int) -> Path:
    """So many files, a few of which show something new."""
    originals = folder.with_name("originals")
    if not originals.exists():
        synthesise(originals, num_clips=NUM_SHOWN, seconds=seconds, seed=0)
    folder.mkdir()
    found = sorted(originals.glob("*.mp4"))
    for number in range(num):
        vary(found[number % len(found)], folder / f"{number:05d}.mp4", number=first + number)
    return folder


def decode_in_pool(pool: Pool, folder: Path) -> float:
    """Seconds that the pool takes to decode all files of a folder."""
    paths = sorted(map(str, folder.iterdir()))
    started = time.perf_counter()
    num_clips = sum(pool.imap_unordered(decode, paths))
    assert num_clips == len(paths), f"{num_clips} clips of {len(paths)} files"
    return time.perf_counter() - started


def decode(path: str) -> int:
    """Decodes a file as ingest does, by its default settings; the number of its clips."""
    settings = IngestSettings()
    task = SourceTask(uri=path, path=path, scene=None, digest="0" * 64)
    events = decode_source(
        task,
        clip_spec=settings.clip,
        window_spec=settings.window,
        sound=settings.sound,
        backend=settings.decode.backend,
    )
    return sum(not isinstance(event, SourceDecoded) for event in events)


def ingest_seconds(source: Path | str, cache: Path, *, engine: str, workers: int) -> float:
    """Seconds of a whole ingest, in a process of its own."""
    settings = {"kl_vae.source": "identity", "run.workers": workers}
    started = time.perf_counter()
    ingest(source, cache, settings, "--engine", engine)
    return time.perf_counter() - started


def ingest(
    source: Path | str, cache: Path, settings: Mapping[str, Any], *options: str
) -> dict[str, Any]:
    """What `mmldm ingest` says as JSON."""
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "mmldm", "ingest", str(source), "--cache", str(cache)]
    done = subprocess.run(
        [*command, "--json", *options, *sets], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_images(work: Path) -> dict[str, float]:
    """Images that are encoded for each window, where windows begin at every frame."""
    settings = {"kl_vae.source": "identity", "window.stride": 1, "clip.size": 32}
    told = ingest("scenes:1:4:10", work / "images", settings)
    inspected = subprocess.run(
        [sys.executable, "-m", "mmldm", "cache", "inspect", "--json", "--cache", work / "images"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    num_windows = json.loads(inspected.stdout)["levels"]["kl"]["num_windows"]
    return {"images_per_window": told["num_kl_images"] / num_windows}


def measure_memory(work: Path, num_many: int) -> dict[str, float]:
    """Peak memory of an ingest of few and of many scenes, all its processes' largest."""
    peaks = {}
    for name, count in (("few", 100), ("many", num_many)):
        program = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-m", "mmldm", "ingest", f"scenes:2:{count}:2", "--json"]
        options = ["kl_vae.source=identity", "clip.size=32", "run.commit_seconds=5"]
        sets = [word for option in options for word in ("--set", option)]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                program,
                *command,
                "--cache",
                str(work / f"memory-{name}"),
                *sets,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks[name] = 1024 * int(done.stdout.splitlines()[-1])
    return {
        "memory_few_bytes": peaks["few"],
        "memory_many_bytes": peaks["many"],
        "memory_growth": peaks["many"] / peaks["few"],
    }


if __name__ == "__main__":
    main()
