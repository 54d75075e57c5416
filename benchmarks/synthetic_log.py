"""A log of made-up commits at the size of real ones, written fast: rows without tensors.

Every commit has 512 latents rows, the ``kl.video`` and ``kl.audio`` of 256 clips, each clip of a
source of its own, with as many checksums and as distinct digests as real rows have. Chain, seals
and names of files are real. Nothing is fsynced while the log is built.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from latents.cache.checkpoint import COMMITS_PER_CHECKPOINT, make_checkpoint
from latents.cache.commit import Commit, read_commit, write_rows
from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.rows import RowKind, row_schema
from latents.recipe import Recipe, sha256_hex

CLIPS_PER_COMMIT = 256
ROWS_PER_COMMIT = 2 * CLIPS_PER_COMMIT
NUM_FRAMES = 100
NUM_WINDOWS = 22
"""Of 16 frames, every 4 frames."""
FPS = 10
CHANNELS = 4
SIDE = 32
SLICE_BYTES = 2 * CHANNELS * SIDE * SIDE * 2
HEADER_BYTES = 1024
"""Before a tensor in its shard."""
SEGMENTATION = sha256_hex(b"segmentation")
RECIPES = {
    f"kl.{sense}": Recipe(
        field=f"kl.{sense}",
        implementation=1,
        specification={"kl_vae": "synthetic"},
        parents=(Recipe(field=f"clip.{sense}", implementation=1, specification={"fps": FPS}),),
    )
    for sense in ("video", "audio")
}
VERSIONS = "torch 2.11.0, diffusers 0.36.0, numpy 2.4.6, librosa 0.11.0"
RUN = {"started": "2026-01-01T00:00:00Z"}
SEED = 0

_CLIPS_PER_BLOCK = COMMITS_PER_CHECKPOINT * CLIPS_PER_COMMIT


class UnsyncedStorage(LocalStorage):
    """A folder that is written without waiting for the disk: a benchmark's log may be lost."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new file; its writer is alone here."""
        self._path_for_writing(name).write_bytes(content)
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Writes a file."""
        self._path_for_writing(name).write_bytes(content)


def num_commits_of(num_rows: int) -> int:
    """Commits that hold at least so many latents rows."""
    return -(-num_rows // ROWS_PER_COMMIT)


def extend_log(root: Path, *, num_commits: int) -> float:
    """Appends commits to a log of this module's until it has so many.

    Returns:
        Seconds of it spent on making the checkpoints that fell due.
    """
    layout = CacheLayout(UnsyncedStorage(root))
    head = sum(1 for _ in layout.storage.list("commits")) - 1
    previous = read_commit(layout, head).digest if head >= 0 else None
    block, checkpoint_seconds = -1, 0.0
    tables: dict[RowKind, pa.Table] = {}
    for number in range(head + 1, num_commits):
        if number // COMMITS_PER_CHECKPOINT != block:
            block = number // COMMITS_PER_CHECKPOINT
            tables = block_tables(block)
        rows = commit_tables(tables, number)
        files = {kind: write_rows(layout, table) for kind, table in sorted(rows.items())}
        commit = Commit(number=number, previous=previous, files=files, run=RUN)
        layout.storage.create(layout.commit(number), commit.to_json())
        previous = commit.digest
        if (number + 1) % COMMITS_PER_CHECKPOINT == 0:
            began = time.perf_counter()
            make_checkpoint(layout, number)
            checkpoint_seconds += time.perf_counter() - began
    return checkpoint_seconds


def commit_tables(block: dict[RowKind, pa.Table], number: int) -> dict[RowKind, pa.Table]:
    """The rows of one commit of a block."""
    place = number % COMMITS_PER_CHECKPOINT
    return {
        "latents": block["latents"].slice(place * ROWS_PER_COMMIT, ROWS_PER_COMMIT),
        "sources": block["sources"].slice(place * CLIPS_PER_COMMIT, CLIPS_PER_COMMIT),
    }


def block_tables(block: int) -> dict[RowKind, pa.Table]:
    """Rows of the 256 commits of one checkpoint, a function of its number."""
    rng = np.random.default_rng([SEED, block])
    sources = random_bytes(rng, _CLIPS_PER_BLOCK, 32)
    return {"latents": _latents(rng, sources, block), "sources": _sources(rng, sources)}


def _latents(rng: np.random.Generator, sources: NDArray[np.uint8], block: int) -> pa.Table:
    """Rows of ``kl.video`` and ``kl.audio`` of each clip, side by side."""
    num_rows = 2 * len(sources)
    is_video = np.arange(num_rows) % 2 == 0
    num_slices = np.where(is_video, NUM_FRAMES, NUM_WINDOWS)
    columns: dict[str, Any] = {
        **_identities(np.repeat(sources, 2, axis=0)),
        **_places(num_slices, block),
        "dtype": repeated("float16", num_rows),
        "shape": lists_of(shapes(num_slices), np.full(num_rows, 4)),
        "digest": hex_strings(random_bytes(rng, num_rows, 32)),
        "crc32c": lists_of(rng.integers(0, 2**32, num_slices.sum(), np.uint32), num_slices),
        "channel_count": num_slices * SIDE * SIDE,
        "mean_sum": channel_sums(rng, num_rows),
        "square_sum": channel_sums(rng, num_rows),
        "window_frames": of_audio(16, is_video),
        "window_stride": of_audio(4, is_video),
        "window_first_frame": of_audio(0, is_video),
        "num_windows": of_audio(NUM_WINDOWS, is_video),
        "sample_rate": np.full(num_rows, 44100),
        "loudness_dbfs": np.repeat(rng.normal(-20, 5, len(sources)), 2),
        "sound_first_frame": np.zeros(num_rows, np.int64),
        "sound_stop_frame": np.full(num_rows, NUM_FRAMES),
        "device": repeated("cuda:NVIDIA H100 80GB HBM3", num_rows),
        "versions": repeated(VERSIONS, num_rows),
        "encode_seconds": np.repeat(rng.uniform(0.5, 2.0, len(sources)), 2),
        "tolerance": np.full(num_rows, 1e-3),
    }
    schema = row_schema("latents")
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _identities(sources: NDArray[np.uint8]) -> dict[str, Any]:
    """Columns that say which tensor a row is of, from (row, byte of the source's digest)."""
    num_rows = len(sources)
    ending = np.frombuffer(f"-{0:08d}-{FPS}".encode(), np.uint8)
    digests = hex_characters(sources)
    return {
        "clip": fixed_strings(np.hstack([digests[:, :32], np.tile(ending, (num_rows, 1))])),
        "field": in_turn(list(RECIPES), num_rows),
        "recipe": in_turn([recipe.digest for recipe in RECIPES.values()], num_rows),
        "source": fixed_strings(digests),
        "segment": np.zeros(num_rows, np.int64),
        "start_frame": np.zeros(num_rows, np.int64),
        "fps": np.full(num_rows, FPS),
    }


def _places(num_slices: NDArray[np.int64], block: int) -> dict[str, Any]:
    """Columns that say where tensors lie: each commit has a shard of its own."""
    shards = [f"{sha256_hex(f'{block} {i}'.encode())}.tar" for i in range(COMMITS_PER_CHECKPOINT)]
    commit = np.arange(len(num_slices)) // ROWS_PER_COMMIT
    member_bytes = num_slices * SLICE_BYTES + HEADER_BYTES
    begins = np.cumsum(member_bytes) - member_bytes
    return {
        "shard": pa.array(shards).take(pa.array(commit)),
        "offset": HEADER_BYTES + begins - begins[::ROWS_PER_COMMIT][commit],
    }


def _sources(rng: np.random.Generator, sources: NDArray[np.uint8]) -> pa.Table:
    """Rows of the sources of one clip each, with URIs of 80 characters in no order."""
    num_sources = len(sources)
    folder = np.frombuffer(b"/mnt/datasets/sounding-videos/2026-01/train/", np.uint8)
    names = hex_characters(random_bytes(rng, num_sources, 16))
    ending = np.frombuffer(b".mp4", np.uint8)
    uris = [np.tile(folder, (num_sources, 1)), names, np.tile(ending, (num_sources, 1))]
    columns: dict[str, Any] = {
        "uri": fixed_strings(np.hstack(uris)),
        "size": rng.integers(10**5, 10**8, num_sources),
        "mtime_ns": rng.integers(16 * 10**17, 18 * 10**17, num_sources),
        "etag": repeated("", num_sources),
        "digest": hex_strings(sources),
        "segmentation": repeated(SEGMENTATION, num_sources),
        "num_segments": np.ones(num_sources, np.int64),
    }
    return pa.table(columns, schema=row_schema("sources"))


def random_bytes(rng: np.random.Generator, num_rows: int, num_bytes: int) -> NDArray[np.uint8]:
    """(row, byte) of chance."""
    return rng.integers(0, 256, (num_rows, num_bytes), np.uint8)


def hex_characters(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(row, byte) as (row, two hex digits a byte)."""
    digits = np.frombuffer(content.tobytes().hex().encode(), np.uint8)
    return digits.reshape(len(content), -1)


def hex_strings(content: NDArray[np.uint8]) -> pa.Array:
    """Each row of bytes as hex digits."""
    return fixed_strings(hex_characters(content))


def fixed_strings(characters: NDArray[np.uint8]) -> pa.Array:
    """Strings of one length from (row, ASCII character)."""
    num_rows, length = characters.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * length
    return pa.StringArray.from_buffers(
        num_rows, pa.py_buffer(offsets), pa.py_buffer(characters.tobytes())
    )


def repeated(value: str, num_rows: int) -> pa.Array:
    """One string in every row."""
    return pa.repeat(pa.scalar(value), num_rows)


def in_turn(values: list[str], num_rows: int) -> pa.Array:
    """The values one after the other, again and again."""
    return pa.array(values).take(pa.array(np.arange(num_rows) % len(values)))


def of_audio(value: int, is_video: NDArray[np.bool_]) -> pa.Array:
    """A number in the rows of sound, null in those of pictures."""
    return pa.array(np.full(len(is_video), value), mask=is_video)


def shapes(num_slices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The four axes of each tensor, one tensor after the other."""
    return np.array([(n, 2 * CHANNELS, SIDE, SIDE) for n in num_slices.tolist()]).ravel()


def lists_of(values: NDArray[Any], lengths: NDArray[np.int64]) -> pa.Array:
    """Values cut into lists."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def channel_sums(rng: np.random.Generator, num_rows: int) -> pa.Array:
    """One sum per channel, in float64."""
    return lists_of(rng.uniform(0, 1e5, num_rows * CHANNELS), np.full(num_rows, CHANNELS))
