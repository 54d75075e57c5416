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


def test_slices_of_windows_say_where_they_lie_and_what_their_checksum_is(row: LatentRow) -> None:
    slices = field_slices(VIDEO, many_rows(row, 600, 5), np.full(600, 5))
    windows, room = np.array([1, 2_997, 4, 1]), np.arange(4, dtype=np.uint8)[:, None]

    found = slices.of_windows(windows, windows // 5, windows % 5, room)

    size = slices.slice_bytes
    first, second = slices.shard_files
    assert [(file, offset, into[0], crc32c) for file, offset, into, crc32c in found] == [
        (first, size, 0, 1),
        (second, 599 * 10**6 + 2 * size, 1, 2_997),
        (first, 4 * size, 2, 4),
        (first, size, 3, 1),
    ]


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
