"""Rows that cannot be are told with the first of them and how many there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latents.cache.damage import Damage
from latents.cache.rows import (
    AnnotationRow,
    LatentRow,
    QuarantineRow,
    Row,
    RowKind,
    TombstoneRow,
    rows_to_table,
)
from latents.cache.verify_rows import verify_rows
from latents.clip import ClipKey
from latents.store.protocol import StoredTensor
from latents.testing import fake_clips, fake_latent_row, fake_recipes, fake_source_row

CLIP = fake_clips(1)[0]


def latents(field: str) -> LatentRow:
    tensor = CLIP.tensors[field]
    stored = StoredTensor(
        shard=f"{'0' * 64}.tar",
        offset=0,
        dtype="float16",
        shape=tensor.shape,
        digest="0" * 64,
        crc32c=(0,) * len(tensor),
    )
    return fake_latent_row(CLIP, field, fake_recipes()[field], stored)


VIDEO, AUDIO = latents("kl.video"), latents("kl.audio")
SOURCE = fake_source_row(CLIP)
EVENT = QuarantineRow(
    event="rejected",
    source="file:///bad.mp4",
    source_digest="",
    segment=None,
    stage="decode",
    recipe="0" * 64,
    error_class="DecodeError",
    message="no video stream",
    attempts=1,
    versions="",
)
ANNOTATION = AnnotationRow(source="a" * 64, label=None, caption=None, split=None)
TOMBSTONE = TombstoneRow(reason="dropped", uri=None, source="a" * 64, clip=None)

RIGHT: list[tuple[RowKind, Row]] = [
    ("latents", VIDEO),
    ("latents", AUDIO),
    ("latents", replace(VIDEO, channel_count=None, mean_sum=None, square_sum=None)),
    ("latents", replace(VIDEO, clip=f"{VIDEO.source[:32]}-00000100-10", start_frame=100)),
    ("sources", SOURCE),
    ("sources", replace(SOURCE, num_segments=0, mtime_ns=-1, size=0)),
    ("quarantine", EVENT),
    ("quarantine", replace(EVENT, event="dropped", source_digest="b" * 64, segment=0)),
    ("annotations", ANNOTATION),
    ("annotations", replace(ANNOTATION, split="validation")),
    ("tombstones", TOMBSTONE),
    ("tombstones", replace(TOMBSTONE, clip=f"{'a' * 32}-00000000-10")),
    ("tombstones", replace(TOMBSTONE, source=None, uri="file:///a.mp4")),
    ("tombstones", replace(TOMBSTONE, source=None, recipe="c" * 64, reason="unreached")),
    ("tombstones", replace(TOMBSTONE, source=None, shard=f"{'d' * 64}.tar", reason="moved")),
]

NAMED = "the clip is not named by its source, first frame and rate"
GRID = "the window grid is not that of its tensor"
SUMS = "the channel sums do not belong together"
LEAVES = "it names nothing, or a clip that is not of its source"
WRONG: list[tuple[RowKind, Row, str]] = [
    ("latents", replace(VIDEO, clip="elsewhere"), NAMED),
    ("latents", replace(VIDEO, source="f" * 64), NAMED),
    ("latents", replace(VIDEO, start_frame=1), NAMED),
    ("latents", replace(VIDEO, fps=25), NAMED),
    ("latents", replace(VIDEO, field="kl.smell"), "there is no such field"),
    ("latents", replace(VIDEO, digest="0" * 63), "the tensor's digest is no SHA-256"),
    ("latents", replace(VIDEO, segment=-1), "the segment is negative"),
    ("latents", replace(AUDIO, num_windows=4), GRID),
    ("latents", replace(AUDIO, num_windows=None), GRID),
    ("latents", replace(AUDIO, window_frames=None), GRID),
    ("latents", replace(AUDIO, window_stride=None), GRID),
    ("latents", replace(AUDIO, window_first_frame=None), GRID),
    ("latents", replace(VIDEO, num_windows=8), GRID),
    ("latents", replace(VIDEO, mean_sum=None), SUMS),
    ("latents", replace(VIDEO, square_sum=[1.0]), SUMS),
    ("latents", replace(VIDEO, channel_count=None), SUMS),
    ("sources", replace(SOURCE, num_segments=-1), "the number of segments is negative"),
    ("sources", replace(SOURCE, size=-1), "the size is negative"),
    ("sources", replace(SOURCE, digest=""), "the digest is no SHA-256"),
    ("sources", replace(SOURCE, segmentation="x"), "the segmentation is no SHA-256"),
    ("quarantine", replace(EVENT, event="forgotten"), "there is no such event"),
    ("quarantine", replace(EVENT, source_digest="b"), "the source's digest is no SHA-256"),
    ("quarantine", replace(EVENT, segment=-1), "the segment is negative"),
    ("quarantine", replace(EVENT, attempts=-1), "the number of attempts is negative"),
    ("annotations", replace(ANNOTATION, source="a"), "the source is no SHA-256"),
    ("annotations", replace(ANNOTATION, split="holdout"), "there is no such split"),
    ("tombstones", replace(TOMBSTONE, source="a"), "the source is no SHA-256"),
    ("tombstones", replace(TOMBSTONE, recipe="a"), "the recipe is no SHA-256"),
    ("tombstones", replace(TOMBSTONE, source=None), LEAVES),
    ("tombstones", replace(TOMBSTONE, clip="b-00000000-10"), LEAVES),
]


def found(kind: RowKind, *rows: Row) -> list[Damage]:
    return list(verify_rows(kind, rows_to_table(kind, rows), path="rows/x"))


@pytest.mark.parametrize(("kind", "row"), RIGHT)
def test_rows_that_can_be_are_no_damage(kind: RowKind, row: Row) -> None:
    assert found(kind, row) == []


@pytest.mark.parametrize(("kind", "row", "problem"), WRONG)
def test_a_row_that_cannot_be_is_told_with_its_one_fault(
    kind: RowKind, row: Any, problem: str
) -> None:
    (damage,) = found(kind, row)

    assert (damage.path, damage.problem) == ("rows/x", f"{kind} row 0: {problem}")
    clip = (row.clip, row.field) if kind == "latents" else (None, None)
    assert (damage.clip, damage.field) == clip


@pytest.mark.parametrize(
    ("fps", "start_frame", "problem"),
    [(0, 0, "the rate is not positive"), (10, -1, "the first frame is negative")],
)
def test_a_clip_of_no_time_is_told(fps: int, start_frame: int, problem: str) -> None:
    clip = str(ClipKey(source_digest=VIDEO.source, start_frame=start_frame, fps=fps))
    damaged = found("latents", replace(VIDEO, clip=clip, fps=fps, start_frame=start_frame))

    assert f"latents row 0: {problem}" in [one.problem for one in damaged]


def test_many_rows_with_one_fault_are_told_once() -> None:
    wrong = replace(VIDEO, segment=-1)

    (damage,) = found("latents", AUDIO, wrong, AUDIO, wrong, wrong)

    assert damage.problem == "latents row 1 and 2 more: the segment is negative"
    assert (damage.clip, damage.field) == (VIDEO.clip, "kl.video")


def test_each_fault_of_a_row_is_told() -> None:
    damaged = found("sources", replace(SOURCE, num_segments=-1, size=-1))

    assert [one.problem.partition(": ")[2] for one in damaged] == [
        "the size is negative",
        "the number of segments is negative",
    ]


@pytest.mark.parametrize("kind", ["latents", "sources", "quarantine", "annotations", "tombstones"])
def test_no_rows_are_no_damage(kind: RowKind) -> None:
    assert found(kind) == []
