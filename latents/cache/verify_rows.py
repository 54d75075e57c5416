"""Whether rows can be: what a reader takes for granted of each, and reading does not refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.damage import Damage
from latents.cache.rows import QuarantineEvent, RowKind
from latents.fields import FIELDS

Check = Callable[[pa.Table], Any]
"""For each row of a table, whether it is right; null counts as wrong."""

_SOURCE_CHARACTERS = 32
"""How much of its source's digest the name of a clip begins with."""
_WINDOWED = pa.array([field.name for field in FIELDS.values() if field.has_row_per_window])


def verify_rows(kind: RowKind, rows: pa.Table, *, path: str) -> Iterator[Damage]:
    """Rows that cannot be, by the kind of fault: the first of each, and how many there are.

    Args:
        kind: Of the rows.
        rows: As a commit's file holds them.
        path: That file.
    """
    for problem, check in _CHECKS[kind].items():
        wrong = np.flatnonzero(~_booleans(check(rows)))
        if len(wrong):
            first = rows.slice(int(wrong[0]), 1).to_pylist()[0]
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            is_latents = kind == "latents"
            yield Damage(
                path=path,
                clip=first["clip"] if is_latents else None,
                field=first["field"] if is_latents else None,
                problem=f"{kind} row {wrong[0]}{others}: {problem}",
            )


def _booleans(values: Any) -> Any:
    filled = pc.fill_null(values, False)
    if isinstance(filled, pa.ChunkedArray):
        filled = filled.combine_chunks()
    return filled.to_numpy(zero_copy_only=False)


def _is_sha256(column: str) -> Check:
    return lambda rows: pc.match_substring_regex(rows[column], "^[0-9a-f]{64}$")


def _is_at_least(column: str, least: int) -> Check:
    return lambda rows: pc.greater_equal(rows[column], least)


def _is_one_of(column: str, *values: str) -> Check:
    return lambda rows: pc.is_in(rows[column], value_set=pa.array(values))


def _or_null(column: str, check: Check) -> Check:
    return lambda rows: pc.or_kleene(pc.is_null(rows[column]), check(rows))


def _names_its_clip(rows: pa.Table) -> Any:
    frame = pc.utf8_lpad(pc.cast(rows["start_frame"], pa.string()), 8, "0")
    rate = pc.cast(rows["fps"], pa.string())
    source = pc.utf8_slice_codeunits(rows["source"], 0, _SOURCE_CHARACTERS)
    return pc.equal(rows["clip"], pc.binary_join_element_wise(source, frame, rate, "-"))


def _has_its_grid(rows: pa.Table) -> Any:
    num_slices = pc.list_element(rows["shape"], 0)
    grid = ("window_frames", "window_stride", "window_first_frame", "num_windows")
    absent = [pc.is_null(rows[column]) for column in grid]
    is_grid = pc.and_(
        pc.equal(rows["num_windows"], num_slices),
        pc.invert(pc.or_(pc.or_(absent[0], absent[1]), absent[2])),
    )
    is_windowed = pc.is_in(rows["field"], value_set=_WINDOWED)
    return pc.if_else(is_windowed, is_grid, absent[3])


def _has_its_sums(rows: pa.Table) -> Any:
    lengths = [pc.list_value_length(rows[column]) for column in ("mean_sum", "square_sum")]
    both = pc.fill_null(pc.equal(*lengths), False)
    none = pc.and_(pc.is_null(rows["mean_sum"]), pc.is_null(rows["square_sum"]))
    return pc.if_else(pc.is_null(rows["channel_count"]), none, both)


def _names_what_leaves(rows: pa.Table) -> Any:
    named = [pc.is_valid(rows[column]) for column in ("uri", "source", "recipe", "shard")]
    is_something = pc.or_(pc.or_(named[0], named[1]), pc.or_(named[2], named[3]))
    begins = pc.equal(
        pc.utf8_slice_codeunits(rows["clip"], 0, _SOURCE_CHARACTERS),
        pc.utf8_slice_codeunits(rows["source"], 0, _SOURCE_CHARACTERS),
    )
    return pc.and_(is_something, pc.or_kleene(pc.is_null(rows["clip"]), begins))


_CHECKS: Mapping[RowKind, Mapping[str, Check]] = {
    "latents": {
        "the clip is not named by its source, first frame and rate": _names_its_clip,
        "there is no such field": _is_one_of("field", *FIELDS),
        "the tensor's digest is no SHA-256": _is_sha256("digest"),
        "the segment is negative": _is_at_least("segment", 0),
        "the first frame is negative": _is_at_least("start_frame", 0),
        "the rate is not positive": _is_at_least("fps", 1),
        "the window grid is not that of its tensor": _has_its_grid,
        "the channel sums do not belong together": _has_its_sums,
    },
    "sources": {
        "the digest is no SHA-256": _is_sha256("digest"),
        "the segmentation is no SHA-256": _is_sha256("segmentation"),
        "the size is negative": _is_at_least("size", 0),
        "the number of segments is negative": _is_at_least("num_segments", 0),
    },
    "quarantine": {
        "there is no such event": _is_one_of("event", *get_args(QuarantineEvent)),
        "the source's digest is no SHA-256": lambda rows: pc.match_substring_regex(
            rows["source_digest"], "^([0-9a-f]{64})?$"
        ),
        "the segment is negative": _or_null("segment", _is_at_least("segment", 0)),
        "the number of attempts is negative": _is_at_least("attempts", 0),
    },
    "annotations": {
        "the source is no SHA-256": _is_sha256("source"),
        "there is no such split": _or_null(
            "split", _is_one_of("split", "train", "validation", "test")
        ),
    },
    "tombstones": {
        "the source is no SHA-256": _or_null("source", _is_sha256("source")),
        "the recipe is no SHA-256": _or_null("recipe", _is_sha256("recipe")),
        "it names nothing, or a clip that is not of its source": _names_what_leaves,
    },
}
