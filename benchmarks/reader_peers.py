"""Read the same windows through other libraries; `reader.py` runs this in an environment of theirs.

Each writes the windows in its own format, and gives them back shuffled as it would in training.
Batches are made of them in the cheapest way, by copying into arrays that are used again. Prints one
JSON object.

    PEERS_PYTHON benchmarks/reader_peers.py --windows FOLDER --seconds 10
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH = 64
SHARD_BYTES = 64 * 2**20
SEED = 0
LIBRARIES = ("webdataset", "litdata", "mosaicml-streaming", "zarr", "torch", "numpy")

Window = tuple[NDArray[np.float16], NDArray[np.float16]]
Arrays = tuple[NDArray[np.float16], NDArray[np.float16]]


def write_webdataset(folder: Path, arrays: Arrays) -> None:
    """Tars of raw bytes, the cheapest that the stock loader can be given."""
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as sink:
        for number, (video, audio) in enumerate(zip(*arrays, strict=True)):
            sink.write(
                {"__key__": f"{number:08d}", "v.bin": video.tobytes(), "a.bin": audio.tobytes()}
            )


def read_webdataset(folder: Path, shapes: list[tuple[int, ...]]) -> Iterator[Window]:
    """The stock iterator, shards and a buffer of 1,000 shuffled."""
    import webdataset as wds

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    for sample in wds.WebDataset(shards, shardshuffle=len(shards), seed=SEED).shuffle(1000):
        yield (
            np.frombuffer(sample["v.bin"], np.float16).reshape(shapes[0]),
            np.frombuffer(sample["a.bin"], np.float16).reshape(shapes[1]),
        )


def write_litdata(folder: Path, arrays: Arrays) -> None:
    """Chunks of LitData, written by its cache without worker processes."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for number, (video, audio) in enumerate(zip(*arrays, strict=True)):
        cache[number] = {"v": np.array(video), "a": np.array(audio)}
    cache.done()
    cache.merge()


def read_litdata(folder: Path, shapes: list[tuple[int, ...]]) -> Iterator[Window]:
    """Its streaming dataset, shuffled."""
    from litdata import StreamingDataset

    for sample in StreamingDataset(str(folder), shuffle=True, seed=SEED):
        yield sample["v"], sample["a"]


def write_mosaicml(folder: Path, arrays: Arrays) -> None:
    """MDS shards of arrays of a declared shape."""
    from streaming import MDSWriter

    columns = {
        name: f"ndarray:float16:{','.join(map(str, array.shape[1:]))}"
        for name, array in zip("va", arrays, strict=True)
    }
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as out:
        for video, audio in zip(*arrays, strict=True):
            out.write({"v": np.array(video), "a": np.array(audio)})


def read_mosaicml(folder: Path, shapes: list[tuple[int, ...]]) -> Iterator[Window]:
    """Its streaming dataset, shuffled."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    for sample in dataset:
        yield sample["v"], sample["a"]


def write_zarr(folder: Path, arrays: Arrays, *, chunk: int) -> None:
    """Uncompressed arrays, so many windows a chunk."""
    import zarr

    group = zarr.open_group(folder, mode="w")
    for name, array in zip("va", arrays, strict=True):
        shape = (chunk, *array.shape[1:])
        stored = group.create_array(
            name, shape=array.shape, chunks=shape, dtype=array.dtype, compressors=None
        )
        stored[:] = array


def read_zarr(folder: Path, shapes: list[tuple[int, ...]]) -> Iterator[Window]:
    """Fancy indexing by batches of random windows."""
    import zarr

    group = zarr.open_group(folder, mode="r")
    video, audio = group["v"], group["a"]
    order = np.random.default_rng(SEED).permutation(video.shape[0])
    for start in range(0, len(order), BATCH):
        batch = np.sort(order[start : start + BATCH])
        yield from zip(video.oindex[batch], audio.oindex[batch], strict=True)


Reader = Callable[[Path, list[tuple[int, ...]]], Iterator[Window]]
PEERS: dict[str, tuple[Callable[[Path, Arrays], None], Reader]] = {
    "webdataset": (write_webdataset, read_webdataset),
    "litdata": (write_litdata, read_litdata),
    "mosaicml": (write_mosaicml, read_mosaicml),
    "zarr, 1 a chunk": (lambda folder, arrays: write_zarr(folder, arrays, chunk=1), read_zarr),
    "zarr, 64 a chunk": (lambda folder, arrays: write_zarr(folder, arrays, chunk=64), read_zarr),
}


def windows_per_second(
    windows: Iterator[Window], shapes: list[tuple[int, ...]], *, seconds: float
) -> float:
    """From the first window on, until so long has gone or they end, by batches of `BATCH`."""
    videos, audios = (np.empty((BATCH, *shape), np.float16) for shape in shapes)
    next(windows)
    started, count = time.perf_counter(), 0
    for video, audio in windows:
        place = count % BATCH
        videos[place], audios[place] = video, audio
        count += 1
        if place == BATCH - 1 and time.perf_counter() - started > seconds:
            break
    return count / (time.perf_counter() - started)


def forget(folder: Path) -> None:
    """Asks the system to drop what it has of a folder's files in memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(folder: Path) -> None:
    """Has the system keep all of a folder's files in memory, read anew from begin to end."""
    forget(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(2**20):
                    pass


def measure(
    name: str, folder: Path, arrays: Arrays, *, seconds: float, repeats: int
) -> dict[str, float]:
    """Windows per second of one library: cold once, and warm the best of a few times."""
    write, read = PEERS[name]
    folder.mkdir(parents=True)
    write(folder, arrays)
    shapes = [array.shape[1:] for array in arrays]
    forget(folder)
    cold = windows_per_second(read(folder, shapes), shapes, seconds=seconds)
    recall(folder)
    warm = [
        windows_per_second(read(folder, shapes), shapes, seconds=seconds) for _ in range(repeats)
    ]
    return {"cold": cold, "warm": max(warm)}


def main() -> None:
    """Measure the libraries that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=Path, required=True, help="video.npy and audio.npy")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    arguments = parser.parse_args()
    arrays = tuple(
        np.load(arguments.windows / f"{name}.npy", mmap_mode="r") for name in ("video", "audio")
    )
    figures = {
        name: measure(
            name,
            arguments.windows / "peers" / name.replace(", ", "-").replace(" ", "-"),
            arrays,
            seconds=arguments.seconds,
            repeats=arguments.repeats,
        )
        for name in arguments.peers
    }
    versions = {name: version(name) for name in LIBRARIES}
    sys.stdout.write(json.dumps({"windows_per_second": figures, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
