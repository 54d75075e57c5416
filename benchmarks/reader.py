"""Measure windows a second that training can read, beside other libraries on the same windows.

A cache of made-up perceptual latents at the paper's shapes is read in a training order, by batches
of 64 windows: resident in memory, from a pack, and streamed from its shards with every checksum.
The other libraries get the same windows in their own formats and environment (`reader_peers.py`).
Ours are measured before and after them, and the slower of both counts.

    python benchmarks/reader.py --peers-python PEERS/bin/python --json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from reader_peers import BATCH, forget, recall
from record import write_result

from latents.cache.order import TrainingOrder
from latents.cache.pack import open_pack
from latents.cache.pack_writer import write_pack
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.resident import ResidentWindows
from latents.cache.streaming import StreamingWindows
from latents.cache.windows import Windows
from latents.testing import make_cache, perceptual_clips, perceptual_recipes

LIBRARIES = ("numpy", "pyarrow", "google-crc32c")
VIDEO, AUDIO = (16, 16, 16), (16, 8, 8)
"""Of a latent; a window has mean and log-variance of both: 20,480 bytes in float16."""
CLIPS_PER_SHARD = 500
SEED = 0


def main() -> None:
    """Measure, and write benchmarks/results/reader.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-clips", type=int, default=6000, help="of 5 windows each")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--peers-python", type=Path, help="python of the other libraries")
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmldm-reader-"))
    try:
        level = make_level(work / "cache", num_clips=arguments.num_clips)
        save_windows(level, work)
        before = measure_own(level, work / "cache", seconds=arguments.seconds)
        peers = measure_peers(arguments.peers_python, work, seconds=arguments.seconds)
        after = measure_own(level, work / "cache", seconds=arguments.seconds)
        figures = {
            "num_windows": 5 * arguments.num_clips,
            "window_bytes": 2 * 2 * (np.prod(VIDEO) + np.prod(AUDIO)).item(),
            **summary(before, after, peers),
        }
        write_result("reader", figures, libraries=LIBRARIES, as_line=arguments.json)
    finally:
        shutil.rmtree(work)


def make_level(root: Path, *, num_clips: int) -> CachedLevel:
    """A cache of the ``perceptual`` level, opened, with a pack of it beside."""
    make_cache(
        root,
        clips=perceptual_clips(num_clips, video=VIDEO, audio=AUDIO),
        clips_per_commit=CLIPS_PER_SHARD,
        recipes=perceptual_recipes(),
    )
    level = open_cache(root, level="perceptual")
    pack_of(root).parent.mkdir()
    write_pack(level, pack_of(root), ref="current")
    return level


def pack_of(root: Path) -> Path:
    """Where the pack of a cache is."""
    return root.with_name("pack") / "pack.safetensors"


def save_windows(level: CachedLevel, folder: Path) -> None:
    """The windows as plain arrays, for the other libraries to write in their formats."""
    windows = ResidentWindows(level, level.clips)
    taken = windows.take(np.arange(windows.num_windows))
    np.save(folder / "video.npy", taken["perceptual.video"])
    np.save(folder / "audio.npy", taken["perceptual.audio"])


def measure_own(level: CachedLevel, root: Path, *, seconds: float) -> dict[str, dict[str, float]]:
    """Windows a second of each way to read; cold, `resident` is what it takes to load them."""
    streaming = StreamingWindows(level, level.clips)
    pack = open_pack(pack_of(root))
    cold = {}
    forget(pack_of(root).parent)
    cold["pack"] = windows_per_second(pack, seconds=seconds, passes=1)
    forget(root)
    cold["streaming"] = windows_per_second(streaming, seconds=seconds, passes=1)
    forget(root)
    started = time.perf_counter()
    resident = ResidentWindows(level, level.clips)
    cold["resident"] = resident.num_windows / (time.perf_counter() - started)
    figures = {"resident": {"warm": windows_per_second(resident, seconds=seconds)}}
    recall(pack_of(root).parent)
    figures["pack"] = {"warm": windows_per_second(pack, seconds=seconds)}
    recall(root)
    figures["streaming"] = {"warm": windows_per_second(streaming, seconds=seconds)}
    return {name: {"cold": cold[name], **rates} for name, rates in figures.items()}


def windows_per_second(windows: Windows, *, seconds: float, passes: int | None = None) -> float:
    """In the order of training, by batches into buffers that are used again."""
    order = TrainingOrder(num_windows=windows.num_windows, seed=SEED)
    out = {f: np.empty((BATCH, *shape), dtype) for f, (shape, dtype) in windows.shapes.items()}
    most = windows.num_windows * passes // BATCH if passes else None
    started, num_batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds and num_batches != most:
        windows.take(order.at(num_batches * BATCH, BATCH)[1], out=out)
        num_batches += 1
    return num_batches * BATCH / (time.perf_counter() - started)


def measure_peers(python: Path | None, folder: Path, *, seconds: float) -> dict[str, Any]:
    """What `reader_peers.py` prints, run by another environment's python."""
    if python is None:
        return {"windows_per_second": {}, "versions": {}}
    script = Path(__file__).with_name("reader_peers.py")
    command = [str(python), str(script), "--windows", str(folder), "--seconds", str(seconds)]
    # Its environment is its own; a path of ours would shadow it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]], peers: dict[str, Any]
) -> dict[str, Any]:
    """The slower of both measurements of ours, and its ratio to each other library, warm."""
    own = {
        name: {state: min(rate, after[name][state]) for state, rate in rates.items()}
        for name, rates in before.items()
    }
    spread = statistics.mean(abs(before[name]["warm"] / after[name]["warm"] - 1) for name in before)
    others: dict[str, dict[str, float]] = peers["windows_per_second"]
    figures: dict[str, Any] = {
        "windows_per_second": {**own, **others},
        "own_spread": spread,
        "peer_versions": peers["versions"],
    }
    if others:
        best = max(rates["warm"] for rates in others.values())
        figures["resident_over_best_peer"] = own["resident"]["warm"] / best
        for name in ("webdataset", "mosaicml", "litdata"):
            ratio = own["streaming"]["warm"] / others[name]["warm"]
            figures[f"streaming_over_{name}"] = ratio
    return figures


if __name__ == "__main__":
    main()
