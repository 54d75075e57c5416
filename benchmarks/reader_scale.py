"""Measure how reading in a training order grows with the number of windows, from 10^4 to 10^8.

The rows of a made-up ``perceptual`` level are held in memory, as an open log holds them. Its shards
are one file of zeros by many names, which the system holds in memory: so any number of windows has
bytes to be read and checksums to be compared, and no disk is measured. Each size has a process of
its own.

    python benchmarks/reader_scale.py --json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import pyarrow as pa
from record import write_result
from synthetic_log import hex_strings, lists_of, random_bytes, repeated

from latents.cache.batches import GlobalBatches
from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.order import TrainingOrder
from latents.cache.reader import CachedLevel, ClipRows
from latents.cache.rows import row_schema
from latents.cache.streaming import StreamingWindows

LIBRARIES = ("numpy", "pyarrow", "google-crc32c")
SIZES = tuple(10**power for power in range(4, 9))
WINDOWS_PER_CLIP = 22
CLIPS_PER_SHARD = 1000
SHAPES = {"perceptual.video": (32, 16, 16), "perceptual.audio": (32, 8, 8)}
"""Mean and log-variance of a window, float16."""
BATCH = 64
SECONDS = 5.0
ROWS_AT_A_TIME = 2**18


@dataclass(frozen=True)
class MadeUpLevel:
    """What a reader asks of a `CachedLevel`."""

    layout: CacheLayout
    recipes: Mapping[str, str]
    clips: ClipRows


def main() -> None:
    """Measure all sizes, and write benchmarks/results/reader_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, help="measure this one only, and print it")
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    if arguments.size is not None:
        sys.stdout.write(json.dumps(measure(arguments.size)))
        return
    sizes = {str(size): in_child(size) for size in SIZES}
    write_result("reader_scale", {"windows": sizes}, libraries=LIBRARIES, as_line=arguments.json)


def in_child(size: int) -> dict[str, float]:
    """What a process that has done nothing else measures."""
    command = [sys.executable, __file__, "--size", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(num_windows: int) -> dict[str, float]:
    """Start-up, memory and speed, of the order alone and of streaming in that order."""
    order = measure_order(num_windows)
    folder = Path(tempfile.mkdtemp(prefix="mmldm-reader-scale-"))
    try:
        level = make_level(folder, num_clips=-(-num_windows // WINDOWS_PER_CLIP))
        return {**order, **measure_streaming(level, num_windows)}
    finally:
        shutil.rmtree(folder)


def measure_order(num_windows: int) -> dict[str, float]:
    """The first batch, one far away, and as many as there is time for."""
    before, started = rss_bytes(), time.perf_counter()
    batches = GlobalBatches(order=TrainingOrder(num_windows=num_windows, seed=0), batch_size=BATCH)
    batches.at(0)
    first = time.perf_counter() - started
    started = time.perf_counter()
    batches.at(10**9)
    far = time.perf_counter() - started
    started, step = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        batches.at(step)
        step += 1
    return {
        "order_first_batch_seconds": first,
        "order_far_batch_seconds": far,
        "order_bytes": rss_bytes() - before,
        "order_windows_per_second": step * BATCH / (time.perf_counter() - started),
    }


def measure_streaming(level: CachedLevel, num_windows: int) -> dict[str, float]:
    """Opening beyond the rows, and reading with checksums."""
    table_bytes = sum(level.clips.rows_of(field).nbytes for field in SHAPES)
    before, started = rss_bytes(), time.perf_counter()
    with StreamingWindows(level, level.clips) as windows:
        opened, added = time.perf_counter() - started, rss_bytes() - before
        order = TrainingOrder(num_windows=windows.num_windows, seed=0)
        batches = GlobalBatches(order=order, batch_size=BATCH)
        windows.take(batches.at(0)[1])
        started, step = time.perf_counter(), 1
        while time.perf_counter() - started < SECONDS:
            windows.take(batches.at(step)[1])
            step += 1
        seconds = time.perf_counter() - started
    return {
        "rows_bytes": table_bytes,
        "open_seconds": opened,
        "open_bytes": added,
        "open_bytes_per_window": added / num_windows,
        "streaming_windows_per_second": (step - 1) * BATCH / seconds,
    }


def make_level(folder: Path, *, num_clips: int) -> CachedLevel:
    """A level whose shards are one file."""
    layout = CacheLayout(LocalStorage(folder))
    (folder / "shards").mkdir()
    first, *others = (
        folder / layout.shard(shard_name(number))
        for number in range(-(-num_clips // CLIPS_PER_SHARD))
    )
    first.write_bytes(bytes(CLIPS_PER_SHARD * WINDOWS_PER_CLIP * sum(map(slice_bytes, SHAPES))))
    for other in others:
        other.hardlink_to(first)
    rows = {field: rows_of(field, num_clips) for field in SHAPES}
    recipes = dict.fromkeys(SHAPES, "made up")
    return cast(CachedLevel, MadeUpLevel(layout=layout, recipes=recipes, clips=ClipRows(rows)))


def rows_of(field: str, num_clips: int) -> pa.Table:
    """The latents rows of a field, in parts as a log's files give them."""
    firsts = range(0, num_clips, ROWS_AT_A_TIME)
    parts = [some_rows(field, first, min(first + ROWS_AT_A_TIME, num_clips)) for first in firsts]
    return pa.concat_tables(parts)


def some_rows(field: str, first: int, stop: int) -> pa.Table:
    """Rows of clips [first, stop), by their numbers."""
    numbers, count = np.arange(first, stop), stop - first
    rng = np.random.default_rng(first)
    keys = hex_strings(random_bytes(rng, count, 16))
    shape = np.array([[WINDOWS_PER_CLIP, *SHAPES[field]]])
    zeros = google_crc32c.value(bytes(slice_bytes(field)))
    checksums = np.full(count * WINDOWS_PER_CLIP, zeros, np.uint32)
    shards = [shard_name(shard) for shard in range(stop // CLIPS_PER_SHARD + 1)]
    place = numbers % CLIPS_PER_SHARD * WINDOWS_PER_CLIP
    begins = 0 if field.endswith("video") else CLIPS_PER_SHARD * WINDOWS_PER_CLIP
    skipped = begins * slice_bytes("perceptual.video")
    known: dict[str, Any] = {
        "clip": keys,
        "field": repeated(field, count),
        "source": keys,
        "shard": pa.array(shards).take(pa.array(numbers // CLIPS_PER_SHARD)),
        "offset": skipped + place * slice_bytes(field),
        "dtype": repeated("float16", count),
        "shape": lists_of(np.repeat(shape, count, axis=0).ravel(), np.full(count, 4)),
        "crc32c": lists_of(checksums, np.full(count, WINDOWS_PER_CLIP)),
        "num_windows": np.full(count, WINDOWS_PER_CLIP),
    }
    schema = row_schema("latents")
    columns = [
        known[n] if n in known else pa.nulls(count, schema.field(n).type) for n in schema.names
    ]
    return pa.table(columns, names=schema.names)


def shard_name(number: int) -> str:
    """A name as a shard has."""
    return f"{number:064x}.tar"


def slice_bytes(field: str) -> int:
    """Of one window."""
    return 2 * int(np.prod(SHAPES[field]))


def rss_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
