"""The examples run, and their answers are right."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import AnnotationRow, Row, RowKind, TombstoneRow, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.recipe import sha256_hex
from latents.store.protocol import StoredTensor
from latents.testing import FakeClip, fake_clips, fake_latent_row, fake_recipes, make_cache
from latents.testing import fake_source_row as source_row

EXAMPLES = Path(__file__).parents[1] / "examples"
QUERY_ROWS = runpy.run_path(str(EXAMPLES / "query_rows.py"))
READ_ZARR_SHARD = runpy.run_path(str(EXAMPLES / "read_zarr_shard.py"))
row_files = QUERY_ROWS["row_files"]
ENGINES = [QUERY_ROWS["duckdb_answers"], QUERY_ROWS["polars_answers"]]

RECIPES = fake_recipes()
VIDEO, AUDIO = (RECIPES[field].digest for field in ("kl.video", "kl.audio"))
CLIPS = fake_clips(5)
KEYS = [str(clip.key) for clip in CLIPS]

Answer = Callable[[Any, str], dict[str, list[tuple[Any, ...]]]]


def append(layout: CacheLayout, kind: RowKind, *rows: Row) -> None:
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({kind: rows_to_table(kind, rows)}, {})


def latent_rows(clip: FakeClip, **values: Any) -> list[Row]:
    return [
        replace(
            fake_latent_row(
                clip,
                field,
                RECIPES[field],
                StoredTensor(
                    shard=f"{sha256_hex(b'shard')}.tar",
                    offset=0,
                    dtype="float16",
                    shape=tensor.shape,
                    digest=sha256_hex(tensor.tobytes()),
                    crc32c=(0,) * len(tensor),
                ),
            ),
            **values,
        )
        for field, tensor in clip.tensors.items()
    ]


def ended(reason: Any, clip: FakeClip, *, whole: bool) -> TombstoneRow:
    key = None if whole else str(clip.key)
    return TombstoneRow(reason=reason, uri=None, source=clip.key.source_digest, clip=key)


def label(clip: FakeClip, text: str) -> AnnotationRow:
    return AnnotationRow(source=clip.key.source_digest, label=text, caption=None, split=None)


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    """Five clips, of which the third and fourth have left, and whatever else a log may hold."""
    layout = make_cache(tmp_path, num_clips=4)
    append(
        layout,
        "latents",
        *latent_rows(CLIPS[4], loudness_dbfs=-10.0, device="cuda", encode_seconds=2.5),
    )
    append(layout, "tombstones", ended("readmitted", CLIPS[0], whole=True))
    moved = latent_rows(CLIPS[1], offset=512)
    CommitLog(layout, seen=CommitLog(layout).head()).append(
        {
            "tombstones": rows_to_table("tombstones", [ended("moved", CLIPS[1], whole=True)]),
            "latents": rows_to_table("latents", moved),
        },
        {},
    )
    append(layout, "tombstones", ended("changed", CLIPS[2], whole=False))
    append(layout, "tombstones", ended("dropped", CLIPS[3], whole=True))
    for text in ("surf", "rain", "sun", "rain"):  # both times rain is one file of rows
        append(layout, "annotations", label(CLIPS[0], text))
    gone, renewed = "file:///!!.mp4", "file:///!.mp4"
    append(layout, "sources", replace(source_row(CLIPS[0]), uri=gone))
    append(layout, "tombstones", TombstoneRow(reason="pruned", uri=gone, source=None, clip=None))
    append(layout, "sources", replace(source_row(CLIPS[0]), uri=renewed))
    append(layout, "sources", replace(source_row(CLIPS[4]), uri=renewed))
    head = CommitLog(layout).head()
    write_ref(layout, "current", Ref(commit=head, recipes={"kl.video": VIDEO, "kl.audio": AUDIO}))
    append(layout, "tombstones", ended("dropped", CLIPS[0], whole=True))  # after the ref
    return layout


@pytest.mark.parametrize("answer", ENGINES)
def test_rows_that_count_are_queried(layout: CacheLayout, answer: Answer) -> None:
    last = CommitLog(layout).head() - 1

    answers = answer(row_files(layout, last), VIDEO)

    assert answers == {
        "clips per label": [("(none)", 2), ("rain", 1)],
        "loudness, dBFS: quantiles 0.05, 0.5, 0.95": [(-20.0, -20.0, pytest.approx(-11.0))],
        "clips encoded per device, and seconds": [("cpu", 2, 0.0), ("cuda", 1, 2.5)],
        "bytes per recipe": [("kl.audio", AUDIO[:12], 3 * 160), ("kl.video", VIDEO[:12], 3 * 256)],
        "clips of the first source: key, start in seconds, frames": [(KEYS[4], 0.0, 8)],
    }


@pytest.mark.parametrize("answer", ENGINES)
@pytest.mark.parametrize(
    ("column", "value", "stays"),
    [("recipe", AUDIO, {"kl.video": 2 * 256}), ("shard", f"{sha256_hex(b'shard')}.tar", {})],
)
def test_what_left_with_its_recipe_or_shard_does_not_count(
    layout: CacheLayout, answer: Answer, column: str, value: str, stays: dict[str, int]
) -> None:
    row = TombstoneRow(reason="unreached", uri=None, source=None, clip=None, **{column: value})
    append(layout, "tombstones", row)

    answers = answer(row_files(layout, CommitLog(layout).head()), VIDEO)

    assert {field: total for field, _, total in answers["bytes per recipe"]} == stays


@pytest.mark.parametrize("answer", ENGINES)
def test_kinds_of_which_there_are_no_rows_do_no_harm(tmp_path: Path, answer: Answer) -> None:
    layout = make_cache(tmp_path, num_clips=3)

    answers = answer(row_files(layout, 1), VIDEO)

    assert answers["clips per label"] == [("(none)", 3)]


def test_the_files_of_rows_hold_what_a_snapshot_counts(layout: CacheLayout) -> None:
    snapshot = load_snapshot(layout)

    duckdb_answers = ENGINES[0](row_files(layout, snapshot.commit), VIDEO)

    num_clips = sum(count for _, count in duckdb_answers["clips per label"])
    assert num_clips == pc.sum(pc.equal(snapshot.index["recipe"], VIDEO)).as_py() == 2


def test_both_engines_are_shown(layout: CacheLayout, capsys: pytest.CaptureFixture[str]) -> None:
    QUERY_ROWS["main"](layout.url)

    lines = capsys.readouterr().out.splitlines()
    half = len(lines) // 2
    assert (lines[0], lines[half]) == ("duckdb_answers", "polars_answers")
    assert lines[1:half] == lines[half + 1 :]
    assert "    rain  1" in lines


def a_zarr_shard(root: Path, clips: Sequence[FakeClip]) -> str:
    layout = make_cache(root, clips=clips, clips_per_commit=len(clips), store="zarr")
    return f"{layout.url}/{next(layout.storage.list('shards')).name}"


@pytest.mark.parametrize("read", ["window_by_zarr", "window_by_xarray"])
def test_a_window_of_a_zarr_shard_is_read(tmp_path: Path, read: str) -> None:
    shard = a_zarr_shard(tmp_path, CLIPS)

    window = READ_ZARR_SHARD[read](shard, KEYS[1], "kl.audio", 2)

    np.testing.assert_array_equal(window, CLIPS[1].tensors["kl.audio"][2])


def test_all_clips_of_a_zarr_shard_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    READ_ZARR_SHARD["main"](a_zarr_shard(tmp_path, CLIPS))

    lines = capsys.readouterr().out.splitlines()
    mean = CLIPS[0].tensors["kl.audio"][-1, :2].mean(dtype=np.float64)
    assert lines[::2] == sorted(KEYS)
    assert f"  kl.audio  mel_channel 4, mel_row 2, mel_column 2; mean {mean:.4f}" in lines
