"""The rows of the log: what each commit says, as Parquet with one schema per kind."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

RowKind = Literal["latents", "sources", "quarantine"]

DTYPES = ("uint8", "float16", "float32")
"""Types of the tensors of all fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentRow:
    """One tensor of one clip, and where its bytes lie."""

    clip: str
    field: str
    recipe: str
    source: str
    """SHA-256 of the source's bytes."""
    segment: int
    start_frame: int
    fps: int
    shard: str
    """Name of the shard file below ``shards/``."""
    offset: int
    """Byte of the shard at which the tensor's data begins."""
    dtype: str
    """numpy's name, little-endian."""
    shape: list[int]
    digest: str
    """SHA-256 of the tensor's bytes."""
    crc32c: list[int]
    """CRC-32C (Castagnoli) of each slice along the first axis."""
    channel_count: int | None
    """Latents: number of values per channel behind the two sums."""
    mean_sum: list[float] | None
    """Latents: sum of the posterior means, per channel."""
    square_sum: list[float] | None
    """Latents: sum of squared means plus variances, per channel."""
    window_frames: int | None
    """Window grid, on fields that have one row per window: frames of a window."""
    window_stride: int | None
    window_first_frame: int | None
    num_windows: int | None
    sample_rate: int | None
    """Hz, of the clip's sound."""
    loudness_dbfs: float | None
    """Root mean square of the clip's sound."""
    sound_first_frame: int | None
    sound_stop_frame: int | None
    device: str
    versions: str
    """Library versions that made it, for the record; not part of its identity."""
    encode_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One source as it was found and how many segments it was cut into."""

    uri: str
    size: int
    """Bytes."""
    mtime_ns: int
    digest: str
    """SHA-256 of its bytes."""
    segmentation: str
    """Digest of the clip specification that num_segments belongs to."""
    num_segments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRow:
    """A clip or source that was given up, and why. Open until a row exists or versions change."""

    source: str
    """URI."""
    source_digest: str
    segment: int | None
    """None for the whole source."""
    stage: str
    recipe: str
    """Digest over the recipes that were wanted."""
    error_class: str
    message: str
    versions: str


ROW_TYPES: dict[RowKind, type[LatentRow] | type[SourceRow] | type[QuarantineRow]] = {
    "latents": LatentRow,
    "sources": SourceRow,
    "quarantine": QuarantineRow,
}

_ARROW_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "list[int]": pa.list_(pa.int64()),
    "list[float] | None": pa.list_(pa.float64()),
}
_COLUMN_TYPES: dict[str, pa.DataType] = {"crc32c": pa.list_(pa.uint32())}
"""Columns narrower than their annotation: checksums are most of a row."""


@cache
def row_schema(kind: RowKind) -> pa.Schema:
    """Arrow schema of a kind of rows."""
    return pa.schema(
        [
            pa.field(
                column.name,
                _COLUMN_TYPES.get(column.name, _ARROW_TYPES[str(column.type)]),
                nullable="None" in str(column.type),
            )
            for column in fields(ROW_TYPES[kind])
        ]
    )


def rows_to_table(
    kind: RowKind, rows: Iterable[LatentRow] | Iterable[SourceRow] | Iterable[QuarantineRow]
) -> pa.Table:
    """Rows as an Arrow table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=row_schema(kind))


def table_to_bytes(table: pa.Table) -> bytes:
    """A table as one Parquet file; equal tables give equal bytes under one pyarrow version."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6", store_schema=False)
    return sink.getvalue()


def table_from_bytes(kind: RowKind, content: bytes) -> pa.Table:
    """Inverse of `table_to_bytes`.

    Raises:
        ValueError: This is not Parquet, has other columns, or rows that cannot be.
    """
    wanted = row_schema(kind)
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
        if table.schema.names != wanted.names:
            raise ValueError(f"{kind} rows have columns {table.schema.names}, not {wanted.names}")
        table = table.cast(wanted)
        if kind == "latents":
            _check_latents(table)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{kind} rows cannot be read: {first_line}") from error
    return table


def _check_latents(table: pa.Table) -> None:
    """Refuses rows that would lead a reader out of the cache or beyond its checksums."""
    axes = pc.list_flatten(table["shape"])
    checks = {
        "shard": pc.match_substring_regex(table["shard"], r"^[0-9a-f]{64}\.[a-z]+$"),
        "recipe": pc.match_substring_regex(table["recipe"], "^[0-9a-f]{64}$"),
        "offset": pc.greater_equal(table["offset"], 0),
        "dtype": pc.is_in(table["dtype"], value_set=pa.array(DTYPES)),
        "shape": pc.fill_null(pc.greater(axes, 0), False),
        "crc32c": pc.equal(
            pc.list_element(table["shape"], 0), pc.list_value_length(table["crc32c"])
        ),
    }
    for column, check in checks.items():
        if not pc.all(check, min_count=0).as_py():
            raise ValueError(f"latents rows have a {column} that no tensor has")


def empty_table(kind: RowKind) -> pa.Table:
    """No rows of a kind."""
    return row_schema(kind).empty_table()


def latent_row(record: dict[str, Any]) -> LatentRow:
    """A row from `pyarrow.Table.to_pylist`."""
    return LatentRow(**record)
