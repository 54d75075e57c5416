"""Files of rows that somebody made to do harm, read where they can take no other process down."""

from __future__ import annotations

import io
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latents.cache.checkpoint import INDEX
from latents.cache.rows import RowKind, row_schema, table_from_bytes, table_to_bytes
from tests.latents.parquet_footer import find, join, read_struct, split, write_struct
from tests.latents.parquet_mutations import parse, tables
from tests.limited_child import run_trials

TRIALS = "tests.latents.parquet_mutations"


def test_hostile_rows_are_refused_or_rows() -> None:
    outcomes = run_trials(f"{TRIALS}:read_hostile_rows", seeds=range(1200))

    assert outcomes["refused"] > 600
    assert outcomes["same"] > 250
    assert outcomes["other"] > 10


@pytest.mark.slow
def test_twenty_thousand_hostile_rows_are_refused_or_rows() -> None:
    outcomes = run_trials(f"{TRIALS}:read_hostile_rows", seeds=range(10_000, 30_000))

    assert outcomes.total() == 20_000


def test_rows_that_do_not_hash_to_their_name_are_never_read() -> None:
    outcomes = run_trials(f"{TRIALS}:read_rows_under_another_name", seeds=range(1500))

    assert outcomes["refused"] > 1450


@pytest.mark.parametrize("kind", tables())
def test_the_footer_that_is_mutilated_is_read_and_written_as_it_is(kind: str) -> None:
    for content in tables()[kind]:
        assert join(*split(content)) == content


def test_a_kilobyte_does_not_become_gigabytes_of_text() -> None:
    outcomes = run_trials(f"{__name__}:read_a_bomb", seeds=range(1))

    assert outcomes == {"refused": 1}


def read_a_bomb(_: int) -> str:
    """Reads 32 GiB of text, the same 256 KiB in each row, from a file of a kilobyte."""
    content = repeating("a" * 2**18, num_rows=2**15)
    assert len(content) < 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="34359738368 bytes of text"):
        table_from_bytes("annotations", content)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return "refused" if grown_kib < 64 * 1024 else f"{grown_kib} KiB"


def repeating(text: str, *, num_rows: int, kind: RowKind = "annotations") -> bytes:
    """Rows whose columns all say the same."""
    codes = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), [text])
    schema = pa.schema([column.with_type(codes.type) for column in row_schema(kind)])
    sink = io.BytesIO()
    table = pa.table([codes] * len(schema), schema=schema)
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def test_the_same_text_in_many_rows_is_no_harm() -> None:
    table = table_from_bytes("annotations", repeating("a", num_rows=1000))

    assert table["label"].to_pylist() == ["a"] * 1000


def test_text_that_is_not_utf_8_is_refused() -> None:
    schema = pa.schema([column.with_type(pa.binary()) for column in row_schema("annotations")])
    sink = io.BytesIO()
    table = pa.table([pa.array([b"\xff\xfe"])] * len(schema), schema=schema)
    pq.write_table(table, sink, store_schema=False)
    pages, footer = split(sink.getvalue())
    says_text = find(split(tables()["annotations"][0])[1], 2)
    for field in footer:
        field.value = says_text if field.number == 2 else field.value

    with pytest.raises(ValueError, match="UTF8"):
        table_from_bytes("annotations", join(pages, footer))


def test_a_code_without_its_text_is_refused() -> None:
    pages, footer = split(tables()[INDEX][0])
    column = find(find(find(footer, 4).values[0], 1).values[0], 3)
    start = find(column, 11)
    header, end = read_struct(pages, start)
    (num_texts, *_) = find(header, 7)
    num_texts.value = 0
    pages = pages[:start] + write_struct(header) + pages[end:]

    with pytest.raises(ValueError, match="it cannot be read as rows"):
        parse(INDEX, join(pages, footer))


@pytest.mark.parametrize(
    ("kind", "column"),
    [("sources", "num_segments"), ("latents", "segment"), ("latents", "channel_count")],
)
def test_a_number_that_nothing_could_count_to_is_refused(kind: RowKind, column: str) -> None:
    table = table_from_bytes(kind, tables()[kind][0])
    index = table.schema.get_field_index(column)
    forged = table.set_column(index, column, pa.array([2**40]))

    with pytest.raises(ValueError, match=f"{kind} rows have a {column}"):
        table_from_bytes(kind, table_to_bytes(forged))


@pytest.mark.parametrize("value", [1, 0.5, None, [1], ["a"], {"a": 1}, b"a"])
def test_a_column_that_is_no_text_is_refused(value: object) -> None:
    sink = io.BytesIO()
    columns = dict.fromkeys(row_schema("annotations").names, pa.array([value]))
    pq.write_table(pa.table(columns), sink, store_schema=False)

    with pytest.raises(ValueError, match="it cannot be read as rows"):
        table_from_bytes("annotations", sink.getvalue())
