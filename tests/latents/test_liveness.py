"""Tombstones: which rows they end, and which they leave alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest

from latents.cache.liveness import last_of_each, living, living_sources

A, B = "a" * 64, "b" * 64
"""Sources."""

Row = tuple[int, str, str, str, str]
"""Commit, source, clip, recipe, shard."""
ROWS: list[Row] = [
    (0, A, "a-0", "mean", "x.tar"),
    (0, A, "a-1", "mean", "x.tar"),
    (0, B, "b-0", "mean", "y.tar"),
    (2, A, "a-0", "more", "z.tar"),
    (2, B, "b-1", "mean", "z.tar"),
]
ENDING = ("changed", "pruned", "dropped", "moved", "unreached")


def latents(rows: Sequence[Row], *, in_codes: bool, num_chunks: int = 2) -> pa.Table:
    """Rows in several pieces, each with a dictionary of its own where the text is in codes."""
    text = pa.dictionary(pa.int32(), pa.string()) if in_codes else pa.string()
    names = ("source", "clip", "recipe", "shard")
    schema = pa.schema([("commit", pa.int64()), *((name, text) for name in names)])
    size = -(-len(rows) // num_chunks) or 1
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    tables = [
        pa.table([pa.array(column) for column in zip(*piece, strict=True)], names=schema.names)
        for piece in pieces
    ]
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])


def tombstones(*rows: Mapping[str, object]) -> pa.Table:
    names = ("reason", "uri", "source", "clip", "recipe", "shard")
    schema = pa.schema([("commit", pa.int64()), *((name, pa.string()) for name in names)])
    return pa.Table.from_pylist(
        [dict.fromkeys(schema.names) | dict(row) for row in rows], schema=schema
    )


def tombstone(commit: int, reason: str, **names: str) -> dict[str, object]:
    return {"commit": commit, "reason": reason} | names


def sources(*rows: tuple[int, str, str]) -> pa.Table:
    """Of commit, URI and digest."""
    schema = pa.schema([("commit", pa.int64()), ("uri", pa.string()), ("digest", pa.string())])
    names = schema.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema)


def as_rows(table: pa.Table) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("in_codes", [False, True])
class TestLatents:
    def left(self, *ended: Mapping[str, object], in_codes: bool) -> list[int]:
        """Which of `ROWS` still live, by position."""
        table = living(latents(ROWS, in_codes=in_codes), tombstones(*ended))
        return [ROWS.index(row) for row in as_rows(table)]  # type: ignore[arg-type]

    def test_without_tombstones_all_rows_live(self, in_codes: bool) -> None:
        assert self.left(in_codes=in_codes) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("reason", ENDING)
    def test_a_source_ends_with_all_its_clips(self, in_codes: bool, reason: str) -> None:
        assert self.left(tombstone(3, reason, source=A), in_codes=in_codes) == [2, 4]

    @pytest.mark.parametrize("reason", ENDING)
    def test_a_clip_ends_alone(self, in_codes: bool, reason: str) -> None:
        ended = tombstone(3, reason, source=A, clip="a-0")

        assert self.left(ended, in_codes=in_codes) == [1, 2, 4]

    @pytest.mark.parametrize("reason", ENDING)
    def test_a_recipe_ends_with_all_its_latents(self, in_codes: bool, reason: str) -> None:
        assert self.left(tombstone(3, reason, recipe="mean"), in_codes=in_codes) == [3]

    @pytest.mark.parametrize("reason", ENDING)
    def test_a_shard_ends_with_all_that_lies_in_it(self, in_codes: bool, reason: str) -> None:
        assert self.left(tombstone(3, reason, shard="x.tar"), in_codes=in_codes) == [2, 3, 4]

    def test_a_tombstone_may_name_several_things(self, in_codes: bool) -> None:
        ended = tombstone(3, "dropped", source=B, recipe="more", shard="y.tar")

        assert self.left(ended, in_codes=in_codes) == [0, 1]

    @pytest.mark.parametrize(
        "names", [{"source": A}, {"source": A, "clip": "a-0"}, {"recipe": "more"}]
    )
    def test_rows_of_the_same_commit_live(self, in_codes: bool, names: dict[str, str]) -> None:
        assert 3 in self.left(tombstone(2, "changed", **names), in_codes=in_codes)
        assert 3 not in self.left(tombstone(3, "changed", **names), in_codes=in_codes)

    def test_rows_of_later_commits_live(self, in_codes: bool) -> None:
        ended = tombstone(1, "changed", source=A, clip="a-0")

        assert self.left(ended, in_codes=in_codes) == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "names", [{"source": A}, {"source": A, "clip": "a-0"}, {"recipe": "mean"}]
    )
    def test_being_readmitted_ends_nothing(self, in_codes: bool, names: dict[str, str]) -> None:
        ended = tombstone(3, "readmitted", **names)

        assert self.left(ended, in_codes=in_codes) == [0, 1, 2, 3, 4]

    def test_being_readmitted_brings_nothing_back(self, in_codes: bool) -> None:
        ended = [tombstone(3, "dropped", source=A), tombstone(4, "readmitted", source=A)]

        assert self.left(*ended, in_codes=in_codes) == [2, 4]

    def test_a_uri_ends_no_latents(self, in_codes: bool) -> None:
        ended = tombstone(3, "pruned", uri="file:///a")

        assert self.left(ended, in_codes=in_codes) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("commits", [(1, 3), (3, 1)])
    def test_the_last_of_several_tombstones_counts(
        self, in_codes: bool, commits: tuple[int, int]
    ) -> None:
        ended = [tombstone(commit, "changed", source=A) for commit in commits]

        assert self.left(*ended, in_codes=in_codes) == [2, 4]

    def test_tombstones_of_a_clip_and_of_another_source_add_up(self, in_codes: bool) -> None:
        ended = [
            tombstone(1, "changed", source=A),
            tombstone(3, "changed", source=B, clip="b-0"),
        ]

        assert self.left(*ended, in_codes=in_codes) == [3, 4]

    def test_a_later_tombstone_of_a_clip_does_not_shield_it_from_that_of_its_source(
        self, in_codes: bool
    ) -> None:
        ended = [
            tombstone(3, "changed", source=A),
            tombstone(1, "changed", source=A, clip="a-0"),
        ]

        assert self.left(*ended, in_codes=in_codes) == [2, 4]

    def test_what_is_not_there_may_be_ended(self, in_codes: bool) -> None:
        ended = [
            tombstone(3, "dropped", source="c" * 64),
            tombstone(3, "dropped", source="c" * 64, clip="c-0"),
            tombstone(3, "unreached", recipe="none"),
        ]

        assert self.left(*ended, in_codes=in_codes) == [0, 1, 2, 3, 4]

    def test_no_rows_are_left_of_none(self, in_codes: bool) -> None:
        none = latents([], in_codes=in_codes)

        assert living(none, tombstones(tombstone(1, "dropped", source=A))).num_rows == 0

    def test_columns_and_types_are_kept(self, in_codes: bool) -> None:
        rows = latents(ROWS, in_codes=in_codes)

        assert living(rows, tombstones(tombstone(3, "dropped", source=A))).schema == rows.schema


class TestSources:
    ROWS = sources((0, "b", B), (0, "a", A), (2, "a", B))

    def left(self, *ended: Mapping[str, object]) -> list[tuple[object, ...]]:
        return as_rows(living_sources(self.ROWS, tombstones(*ended)))

    def test_the_latest_of_each_uri_counts_in_order_of_uri(self) -> None:
        assert self.left() == [(2, "a", B), (0, "b", B)]

    @pytest.mark.parametrize("reason", ["changed", "pruned", "dropped"])
    def test_a_uri_ends(self, reason: str) -> None:
        assert self.left(tombstone(3, reason, uri="a")) == [(0, "b", B)]

    @pytest.mark.parametrize("commit", [1, 2])
    def test_a_uri_that_came_back_lives(self, commit: int) -> None:
        assert self.left(tombstone(commit, "pruned", uri="a")) == [(2, "a", B), (0, "b", B)]

    def test_an_older_row_does_not_take_the_place_of_one_that_ended(self) -> None:
        rows = sources((3, "a", A), (5, "a", B))

        assert living_sources(rows, tombstones(tombstone(6, "pruned", uri="a"))).num_rows == 0

    @pytest.mark.parametrize("names", [{"source": B}, {"recipe": "mean"}, {"shard": "x.tar"}])
    def test_latents_that_end_leave_the_record_of_their_source(self, names: dict[str, str]) -> None:
        assert self.left(tombstone(3, "changed", **names)) == [(2, "a", B), (0, "b", B)]

    def test_being_readmitted_ends_nothing(self) -> None:
        ended = tombstone(3, "readmitted", uri="a", source=B)

        assert self.left(ended) == [(2, "a", B), (0, "b", B)]

    def test_no_rows_are_left_of_none(self) -> None:
        ended = tombstones(tombstone(1, "pruned", uri="a"))

        assert living_sources(sources(), ended).num_rows == 0


class TestTheLastOfEach:
    def test_it_is_the_last_in_the_order_of_the_rows(self) -> None:
        rows = sources((0, "a", A), (1, "b", A), (2, "a", B), (2, "c", B))

        assert as_rows(last_of_each(rows, "uri")) == [(1, "b", A), (2, "a", B), (2, "c", B)]

    def test_it_is_all_where_no_value_comes_twice(self) -> None:
        rows = sources((0, "b", A), (1, "a", A))

        assert last_of_each(rows, "uri") == rows

    def test_of_none_there_is_none(self) -> None:
        assert last_of_each(sources(), "uri").num_rows == 0
