"""Rows as Parquet: what was written comes back, and what cannot be is refused."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latents.cache.checkpoint import INDEX_SCHEMA, index_of
from latents.cache.rows import (
    MAX_AXIS,
    ROW_KINDS,
    AnnotationRow,
    LatentRow,
    Row,
    RowKind,
    TombstoneReason,
    TombstoneRow,
    check_rows,
    empty_table,
    latent_row,
    read_parquet,
    row_schema,
    rows_to_table,
    table_from_bytes,
    table_to_bytes,
    with_commit,
)
from latents.store.protocol import StoredTensor
from latents.testing import (
    fake_clips,
    fake_latent_row,
    fake_recipes,
    fake_source_row,
    quarantine_table,
)


def a_latent_row(*, field: str = "kl.audio") -> LatentRow:
    (clip,) = fake_clips(1)
    stored = StoredTensor(
        shard=f"{'0' * 64}.tar",
        offset=1536,
        dtype="float16",
        shape=(5, 4, 2, 2),
        digest="0" * 64,
        crc32c=(0, 1, 2, 3, 2**32 - 1),
    )
    return fake_latent_row(clip, field, fake_recipes()[field], stored)


def tombstone(reason: TombstoneReason = "dropped") -> TombstoneRow:
    return TombstoneRow(reason=reason, uri="file:///a.mp4", source="a" * 64, clip=None)


TABLES: dict[RowKind, pa.Table] = {
    "latents": rows_to_table("latents", [a_latent_row(), a_latent_row(field="kl.video")]),
    "sources": rows_to_table("sources", [fake_source_row(clip) for clip in fake_clips(2)]),
    "quarantine": quarantine_table("a" * 64),
    "annotations": rows_to_table(
        "annotations", [AnnotationRow(source="a" * 64, label="dog", caption=None, split="train")]
    ),
    "tombstones": rows_to_table("tombstones", [tombstone()]),
}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def with_column(name: str, values: list[Any], column_type: pa.DataType | None = None) -> pa.Table:
    """One latents row with another value."""
    table = TABLES["latents"].slice(0, 1)
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, pa.array(values, type=column_type))


class TestWhatIsWritten:
    @pytest.mark.parametrize("kind", ROW_KINDS)
    def test_rows_come_back_as_they_were(self, kind: RowKind) -> None:
        read = table_from_bytes(kind, table_to_bytes(TABLES[kind]))

        assert read == TABLES[kind]
        assert read.schema == row_schema(kind)

    @pytest.mark.parametrize("kind", ROW_KINDS)
    def test_no_rows_come_back_as_none(self, kind: RowKind) -> None:
        assert table_from_bytes(kind, table_to_bytes(empty_table(kind))).num_rows == 0

    def test_a_record_is_the_row_it_was(self) -> None:
        assert latent_row(TABLES["latents"].to_pylist()[0]) == a_latent_row()

    def test_the_index_comes_back_in_codes(self) -> None:
        index = index_of(with_commit(TABLES["latents"], 7))

        assert read_parquet(table_to_bytes(index), INDEX_SCHEMA) == index

    @pytest.mark.parametrize("kind", ROW_KINDS)
    def test_equal_tables_give_equal_bytes(self, kind: RowKind) -> None:
        table = TABLES[kind]
        in_pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])

        assert table_to_bytes(in_pieces) == table_to_bytes(table)

    @pytest.mark.parametrize("kind", ROW_KINDS)
    def test_any_parquet_reader_reads_them(self, kind: RowKind) -> None:
        table = pq.read_table(io.BytesIO(table_to_bytes(TABLES[kind])))

        assert table.to_pylist() == TABLES[kind].to_pylist()

    def test_the_commit_stands_beside_each_row(self) -> None:
        table = with_commit(TABLES["sources"], 7)

        assert table["commit"].to_pylist() == [7, 7]
        assert table.drop_columns("commit") == TABLES["sources"]

    @pytest.mark.parametrize("row", [tombstone(), fake_source_row(fake_clips(1)[0])])
    def test_a_row_of_another_kind_is_refused(self, row: Row) -> None:
        with pytest.raises((ValueError, KeyError, pa.ArrowException)):
            table_to_bytes(rows_to_table("latents", [row]))


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"PAR1 no parquet PAR1",
            parquet(pa.table({"clip": ["a"]})),
            parquet(TABLES["latents"].drop_columns("shard")),
            parquet(TABLES["latents"].append_column("more", pa.array([1, 1]))),
            parquet(TABLES["latents"].select(TABLES["latents"].schema.names[::-1])),
            parquet(TABLES["sources"]),
            parquet(with_column("offset", ["not a number"])),
            parquet(with_column("clip", [None], pa.string())),
            parquet(with_column("crc32c", [[-1, 0, 0, 0, 0]])),
            table_to_bytes(TABLES["latents"])[:-9],
            table_to_bytes(TABLES["latents"])[9:],
        ],
    )
    def test_a_file_of_another_form(self, content: bytes) -> None:
        with pytest.raises(ValueError, match=r"cannot be read as rows|has columns|null"):
            table_from_bytes("latents", content)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("shard", "../../secrets.tar"),
            ("shard", "/etc/passwd"),
            ("shard", f"{'0' * 64}.tar/../../x.tar"),
            ("shard", f"{'0' * 64}.tar\n"),
            ("shard", f"{'0' * 64}"),
            ("recipe", "x/../y"),
            ("source", ""),
            ("offset", -1),
            ("dtype", "object"),
            ("dtype", "int64"),
            ("dtype", ""),
        ],
    )
    def test_a_value_that_leads_a_reader_astray(self, column: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"latents rows have a {column} that no tensor has"):
            table_from_bytes("latents", parquet(with_column(column, [value])))

    @pytest.mark.parametrize(
        "shape",
        [
            [],
            [5, 1, 1, 1, 1, 1],
            [0, 4, 2, 2],
            [5, 0, 2, 2],
            [5, -4, 2, 2],
            [-5, 4, 2, 2],
            [5, None, 2, 2],
            [5, MAX_AXIS + 1],
            [5, 2**62, 2**62],
        ],
    )
    def test_a_shape_that_no_tensor_has(self, shape: list[int | None]) -> None:
        table = with_column("shape", [shape], pa.list_(pa.int64()))

        with pytest.raises(ValueError, match=r"latents rows have a .*(axes|shape) that no tensor"):
            table_from_bytes("latents", parquet(table))

    @pytest.mark.parametrize("shape", [[5], [5, 1, 1, 1, 1], [5, MAX_AXIS]])
    def test_but_not_one_that_some_tensor_could_have(self, shape: list[int]) -> None:
        table = with_column("shape", [shape], pa.list_(pa.int64()))

        assert table_from_bytes("latents", parquet(table))["shape"].to_pylist() == [shape]

    @pytest.mark.parametrize("num_checksums", [0, 4, 6])
    def test_checksums_that_are_not_one_a_slice(self, num_checksums: int) -> None:
        table = with_column("crc32c", [[0] * num_checksums], pa.list_(pa.uint32()))

        with pytest.raises(ValueError, match="latents rows have a crc32c"):
            table_from_bytes("latents", parquet(table))

    def test_one_bad_row_among_good_ones(self) -> None:
        rows = [a_latent_row(), replace(a_latent_row(), shard="../x.tar"), a_latent_row()]

        with pytest.raises(ValueError, match="have a shard that no tensor has"):
            check_rows("latents", rows_to_table("latents", rows))

    def test_a_reason_that_is_not_known(self) -> None:
        row = tombstone("forgotten")  # type: ignore[arg-type]  # of a later version, say

        with pytest.raises(ValueError, match="tombstones have a reason that is not known here"):
            table_from_bytes("tombstones", table_to_bytes(rows_to_table("tombstones", [row])))

    def test_a_tombstone_of_a_clip_of_no_source(self) -> None:
        table = rows_to_table("tombstones", [replace(tombstone(), source=None, clip="a")])

        with pytest.raises(ValueError, match="tombstones name a clip without its source"):
            table_from_bytes("tombstones", table_to_bytes(table))


NUM_ROWS = 4321


class TestClaims:
    """A file of a few hundred bytes whose footer says something else."""

    @staticmethod
    def claiming(num_rows: int) -> bytes:
        """Tombstones in a group of rows that claims to hold another number of them."""
        content = table_to_bytes(rows_to_table("tombstones", [tombstone()] * NUM_ROWS))
        (footer_bytes,) = struct.unpack("<i", content[-8:-4])
        data, footer = content[: -8 - footer_bytes], content[-8 - footer_bytes : -8]
        before, true, after = footer.rpartition(thrift_int64(NUM_ROWS))
        assert true
        forged = before + thrift_int64(num_rows) + after
        return data + forged + struct.pack("<i", len(forged)) + b"PAR1"

    def test_the_truth_is_read(self) -> None:
        read = table_from_bytes("tombstones", self.claiming(NUM_ROWS))

        assert read.num_rows == NUM_ROWS

    @pytest.mark.parametrize("num_rows", [2**26 + 1, 2**33, 2**62, -(2**33)])
    def test_more_rows_than_there_can_be_are_refused_before_one_is_read(
        self, num_rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pq.ParquetFile, "read", None)

        with pytest.raises(ValueError, match=r"it claims to hold .* rows in"):
            table_from_bytes("tombstones", self.claiming(num_rows))

    def test_fewer_rows_than_none_are_refused(self) -> None:
        with pytest.raises(ValueError, match="it cannot be read as rows"):
            table_from_bytes("tombstones", self.claiming(-1))

    @pytest.mark.parametrize(
        ("limit", "value"), [("MAX_TABLE_ROWS", NUM_ROWS - 1), ("MAX_TABLE_BYTES", 100)]
    )
    def test_a_refusal_says_what_was_claimed(
        self, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"latents.cache.rows.{limit}", value)

        with pytest.raises(ValueError, match=r"it claims to hold 4321 rows in \d+ bytes"):
            table_from_bytes("tombstones", self.claiming(NUM_ROWS))

    def test_all_groups_of_rows_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = io.BytesIO()
        pq.write_table(TABLES["sources"], sink, row_group_size=1)
        monkeypatch.setattr("latents.cache.rows.MAX_TABLE_ROWS", 1)

        with pytest.raises(ValueError, match="it claims to hold 2 rows"):
            table_from_bytes("sources", sink.getvalue())


def thrift_int64(value: int) -> bytes:
    """A 64-bit field as Thrift's compact protocol has it, after a field one number before."""
    rest, encoded = (value << 1) ^ (value >> 63), b""
    while True:
        rest, low = rest >> 7, rest & 0x7F
        encoded += bytes([low | (0x80 if rest else 0)])
        if not rest:
            return b"\x16" + encoded
