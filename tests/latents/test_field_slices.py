"""Where slices lie, as columns: fast to make, and refused where rows do not fit together."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from latents.cache.field_slices import field_slices
from latents.cache.rows import LatentRow, row_schema, rows_to_table
from latents.errors import CacheError
from tests.latents.window_caches import VIDEO, perceptual_level


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> LatentRow:
    return perceptual_level(tmp_path_factory.mktemp("cache"), num_clips=1).clips[0].rows[VIDEO]


def table_of(*rows: LatentRow) -> pa.Table:
    return rows_to_table("latents", rows)


def many_rows(row: LatentRow, num_clips: int, num_windows: int) -> pa.Table:
    """As many rows with tensors of that many windows, in a shard of 512 clips each."""
    counts = np.full(num_clips, num_windows)
    shards = pa.array([f"{shard:064x}.tar" for shard in range(num_clips // 512 + 1)])
    columns = {
        name: pa.repeat(
            pa.scalar(getattr(row, name), row_schema("latents").field(name).type), num_clips
        )
        for name in row_schema("latents").names
    }
    columns["shard"] = shards.take(pa.array(np.arange(num_clips) // 512))
    columns["offset"] = pa.array(np.arange(num_clips) * 10**6)
    columns["num_windows"] = pa.array(counts)
    shapes = np.column_stack([counts, np.full((num_clips, 3), (32, 16, 16))])
    columns["shape"] = lists_of(shapes.ravel(), 4)
    columns["crc32c"] = lists_of(np.arange(num_clips * num_windows, dtype=np.uint32), num_windows)
    return pa.table(columns, schema=row_schema("latents"))


def lists_of(values: np.ndarray, length: int) -> pa.Array:
    offsets = np.arange(0, len(values) + 1, length, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def test_a_hundred_thousand_clips_take_no_time_and_little_memory(row: LatentRow) -> None:
    rows = many_rows(row, 100_000, 22)

    began = time.process_time()
    slices = field_slices(VIDEO, rows, np.full(100_000, 22))
    seconds = time.process_time() - began

    assert seconds < 1
    num_bytes = slices.shards.nbytes + slices.offsets.nbytes + slices.crc32c.nbytes
    assert num_bytes == 100_000 * (4 + 8 + 22 * 4)
    assert slices.place(700, 3) == (f"shards/{1:064x}.tar", 700 * 10**6 + 3 * 32 * 16 * 16 * 2)
    np.testing.assert_array_equal(slices.crc32c, np.arange(2_200_000))


def test_windows_that_lie_side_by_side_are_one_run(row: LatentRow) -> None:
    slices = field_slices(VIDEO, many_rows(row, 600, 5), np.full(600, 5))
    clips, numbers = np.array([0, 0, 599, 0, 1, 0]), np.array([1, 2, 0, 4, 0, 4])
    room = np.arange(6, dtype=np.uint8)[:, None]

    runs = slices.runs(clips, numbers, room)

    size = slices.slice_bytes
    first, second = slices.shard_files
    assert [(shard, offset, into[:, 0].tolist()) for shard, offset, into in runs] == [
        (first, size, [0, 1]),
        (second, 599 * 10**6, [2]),
        (first, 4 * size, [3]),
        (first, 10**6, [4]),
        (first, 4 * size, [5]),
    ]


def test_neighbours_across_two_shards_are_two_runs(row: LatentRow) -> None:
    rows = table_of(
        replace(row, offset=0, shard="0" * 64 + ".tar"),
        replace(row, offset=5 * 128, shard="1" * 64 + ".tar"),
    )
    slices = field_slices(VIDEO, rows, np.array([5, 5]))
    assert slices.slice_bytes == 128
    runs = slices.runs(np.array([0, 1]), np.array([4, 0]), np.zeros((2, 1), np.uint8))
    assert len(list(runs)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [5, 4, 4, 2]}, r"of clip other is float16 \[4, 4, 2\] a window, but that of"),
        ({"shape": [5, 64]}, r"of clip other is float16 \[64\] a window, but that of"),
        ({"dtype": "float32"}, r"of clip other is float32 \[4, 4, 4\] a window, but that of"),
        ({"shape": [4, 4, 4, 4]}, "of clip other has 4 rows for 5 windows; make it again with"),
        ({"offset": 2**62}, "ends at byte .* no file is so long"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(
    row: LatentRow, change: dict[str, object], message: str
) -> None:
    other = replace(row, clip="other", **change)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match=message):
        field_slices(VIDEO, table_of(row, other), np.array([5, 5]))


def test_shapes_that_cannot_be_are_refused_and_do_not_overflow(row: LatentRow) -> None:
    rows = table_of(replace(row, shape=[5, 2**40, 2**40, 2**40]))
    with pytest.raises(CacheError, match="no file is so long"):
        field_slices(VIDEO, rows, np.array([5]))
