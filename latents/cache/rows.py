"""The rows of the log: what each commit says, as Parquet with one schema per kind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

RowKind = Literal["latents", "sources", "quarantine", "annotations", "tombstones"]
ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)

QuarantineEvent = Literal["rejected", "retried", "dropped"]
TombstoneReason = Literal["changed", "pruned", "dropped", "readmitted", "moved", "unreached"]
"""``changed``: no source has these bytes any more. ``pruned``: the source is gone. ``dropped``: it
was taken down, and is not to come back. ``readmitted``: it may; nothing leaves by this one.
``moved``: its tensors lie elsewhere now, as rows of the same commit say. ``unreached``: no ref
reached its recipe any more."""

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
    """Of the whole clip, all fields together."""
    tolerance: float
    """Relative L2 distance within which encoding again, on whatever device, must come; 0: equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One source as it was found and how many segments it was cut into."""

    uri: str
    size: int
    """Bytes."""
    mtime_ns: int
    """0 where the source has an etag."""
    etag: str
    """What an object store says of its content; empty for files and scenes."""
    digest: str
    """SHA-256 of its bytes."""
    segmentation: str
    """Digest of the clip specification that num_segments belongs to."""
    num_segments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRow:
    """Something that happened to a clip or source that was given up.

    It is open until a latents row exists, versions or settings change, or another event follows.
    """

    event: QuarantineEvent
    """``rejected``: given up; ``retried``: to be tried again; ``dropped``: of no interest."""
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
    attempts: int
    """How often it has been tried by now, under whatever versions and settings."""
    versions: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationRow:
    """What people say of a source. The latest row of a source counts; no latent depends on it."""

    source: str
    """SHA-256 of the source's bytes."""
    label: str | None
    """Class."""
    caption: str | None
    split: str | None
    """``train``, ``validation`` or ``test``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TombstoneRow:
    """Something that left. It ends the rows of earlier commits that it names."""

    reason: TombstoneReason
    uri: str | None
    """The source's row of this URI leaves."""
    source: str | None
    """Latents of the source of this digest leave: all, or only those of ``clip``."""
    clip: str | None
    recipe: str | None = None
    """Latents that this recipe made leave."""
    shard: str | None = None
    """Latents that lie in this shard leave."""
    stop_frame: int | None = None
    """Of a clip that was dropped: the frame of its source, at the clip's rate, before which it
    ended. Clips that are cut otherwise stay out where they overlap it."""


ROW_TYPES: dict[RowKind, type] = {
    "latents": LatentRow,
    "sources": SourceRow,
    "quarantine": QuarantineRow,
    "annotations": AnnotationRow,
    "tombstones": TombstoneRow,
}

_ARROW_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "str | None": pa.string(),
    "QuarantineEvent": pa.string(),
    "TombstoneReason": pa.string(),
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "list[int]": pa.list_(pa.int64()),
    "list[float] | None": pa.list_(pa.float64()),
}
MAX_AXIS = 2**40
"""Longest axis of a tensor: far more than there is, and little enough to multiply."""
MAX_TABLE_BYTES = 2**32
MAX_TABLE_ROWS = 2**26
"""No file of rows is near these: a commit has thousands of rows, a checkpoint 256 times that."""
COMMIT_COLUMN = pa.field("commit", pa.int64(), nullable=False)

_SHA256 = "^[0-9a-f]{64}$"
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


Row = LatentRow | SourceRow | QuarantineRow | AnnotationRow | TombstoneRow


def rows_to_table(kind: RowKind, rows: Iterable[Row]) -> pa.Table:
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
    table = read_parquet(content, row_schema(kind))
    check_rows(kind, table)
    return table


def read_parquet(content: bytes, wanted: pa.Schema) -> pa.Table:
    """The table in a Parquet file of a known schema.

    Raises:
        ValueError: This is not Parquet, has other columns, or claims to be larger than any file
            of rows is.
    """
    # Each text once, however many rows a few bytes say have it.
    as_codes = [field.name for field in wanted if _is_text(field.type)]
    try:
        metadata = pq.read_metadata(io.BytesIO(content))
        found = metadata.schema.to_arrow_schema()
        if found.names != wanted.names:
            raise ValueError(f"it has columns {found.names}, not {wanted.names}")
        for name in as_codes:
            if not pa.types.is_string(of_type := found.field(name).type):
                raise ValueError(f"it cannot be read as rows: {name} is {of_type}, not text")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        # Before anything is allocated: a few bytes can claim to hold any number of rows.
        claimed = sum(abs(group.total_byte_size) for group in groups)
        num_rows = sum(abs(group.num_rows) for group in groups)
        if claimed > MAX_TABLE_BYTES or num_rows > MAX_TABLE_ROWS:
            raise ValueError(f"it claims to hold {num_rows} rows in {claimed} bytes")
        file = pq.ParquetFile(io.BytesIO(content), metadata=metadata, read_dictionary=as_codes)
        table = file.read(use_threads=False)
        table.validate(full=True)  # text that is not UTF-8, codes that stand for none
        num_bytes = sum(_text_bytes(table[f.name]) for f in wanted if pa.types.is_string(f.type))
        if num_bytes > MAX_TABLE_BYTES:
            raise ValueError(f"it claims to hold {num_bytes} bytes of text")
        return table.cast(wanted)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"it cannot be read as rows: {first_line}") from error


def _is_text(of_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(of_type) or pa.types.is_dictionary(of_type))


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a text column, read as codes, once every row has its own text."""
    num_bytes = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
        num_bytes += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return num_bytes


def check_rows(kind: str, table: pa.Table) -> None:
    """Raises `ValueError` on rows of the right columns that cannot be."""
    for name in _COUNTS.get(kind, ()):
        if not _holds_of_all(_is_count(table[name])):
            raise ValueError(f"{kind} rows have a {name} that nothing could count to")
    if kind == "latents":
        _check_latents(table)
    if kind == "tombstones":
        _check_tombstones(table)


_COUNTS: dict[str, tuple[str, ...]] = {
    "latents": (
        "segment",
        "start_frame",
        "fps",
        "channel_count",
        "window_frames",
        "window_stride",
        "window_first_frame",
        "num_windows",
        "sample_rate",
        "sound_first_frame",
        "sound_stop_frame",
    ),
    "sources": ("num_segments",),
    "quarantine": ("segment", "attempts"),
    "tombstones": ("stop_frame",),
}


def _check_latents(table: pa.Table) -> None:
    """Refuses rows that would lead a reader out of the cache or beyond its checksums."""
    checks: dict[str, Callable[[], Any]] = {
        "shard": lambda: pc.match_substring_regex(table["shard"], r"^[0-9a-f]{64}\.[a-z]+$"),
        "recipe": lambda: pc.match_substring_regex(table["recipe"], _SHA256),
        "source": lambda: pc.match_substring_regex(table["source"], _SHA256),
        "offset": lambda: pc.greater_equal(table["offset"], 0),
        "dtype": lambda: pc.is_in(table["dtype"], value_set=pa.array(DTYPES)),
        "number of axes": lambda: pc.is_in(
            pc.list_value_length(table["shape"]), value_set=pa.array(range(1, 6), pa.int32())
        ),
        "shape": lambda: _is_between(pc.list_flatten(table["shape"]), 1, MAX_AXIS),
        "crc32c": lambda: pc.equal(
            pc.list_element(table["shape"], 0), pc.list_value_length(table["crc32c"])
        ),
    }
    for column, check in checks.items():
        if not _holds_of_all(check()):
            raise ValueError(f"latents rows have a {column} that no tensor has")


def _check_tombstones(table: pa.Table) -> None:
    """Refuses rows of which nobody can say what they end."""
    reasons = pa.array(get_args(TombstoneReason))
    if not pc.all(pc.is_in(table["reason"], value_set=reasons), min_count=0).as_py():
        raise ValueError("tombstones have a reason that is not known here")
    if pc.any(pc.and_(pc.is_valid(table["clip"]), pc.is_null(table["source"]))).as_py():
        raise ValueError("tombstones name a clip without its source")


def _holds_of_all(answers: Any) -> bool:
    return bool(pc.all(pc.fill_null(answers, False), min_count=0).as_py())


def _is_count(numbers: Any) -> Any:
    return pc.fill_null(_is_between(numbers, 0, 2**31 - 1), True)


def _is_between(numbers: Any, low: int, high: int) -> Any:
    return pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))


def empty_table(kind: RowKind) -> pa.Table:
    """No rows of a kind."""
    return row_schema(kind).empty_table()


def with_commit(table: pa.Table, number: int) -> pa.Table:
    """Rows with the number of their commit beside them, as the column ``commit``."""
    return table.append_column(COMMIT_COLUMN, pa.array(np.full(table.num_rows, number)))


def latent_row(record: dict[str, Any]) -> LatentRow:
    """A row from `pyarrow.Table.to_pylist`."""
    return LatentRow(**record)
