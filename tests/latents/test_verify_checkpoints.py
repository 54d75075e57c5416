"""Checkpoints hold what their commits hold, or are made again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from latents.cache.checkpoint import (
    INDEX,
    Checkpoint,
    make_checkpoint,
    read_checkpoint,
    read_checkpoint_rows,
)
from latents.cache.commit import write_rows
from latents.cache.damage import Damage
from latents.cache.layout import CacheLayout
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.testing import make_cache


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheLayout:
    """Five commits of a clip each, checkpoints at commits 1 and 3."""
    for module in ("checkpoint", "verify_log", "verify_checkpoints"):
        monkeypatch.setattr(f"latents.cache.{module}.COMMITS_PER_CHECKPOINT", 2)
    return make_cache(tmp_path / "cache", num_clips=5, clips_per_commit=1)


def file_of(layout: CacheLayout, number: int) -> Path:
    return Path(layout.url, layout.checkpoint(number))


def rows_file(layout: CacheLayout, number: int, kind: str) -> Path:
    return Path(layout.url, layout.rows(read_checkpoint(layout, number).files[kind].sha256))


def forge(layout: CacheLayout, number: int, kind: str, rows: pa.Table | None) -> None:
    """Gives a checkpoint other rows of a kind, or none, with its seal and all hashes right."""
    true = read_checkpoint(layout, number)
    files = {name: file for name, file in true.files.items() if name != kind}
    if rows is not None:
        files[kind] = write_rows(layout, rows)
    forged = Checkpoint(
        number=number, commit=true.commit, previous=true.previous, files=dict(sorted(files.items()))
    )
    layout.storage.replace(layout.checkpoint(number), forged.to_json())


def stored(layout: CacheLayout, number: int, kind: str) -> pa.Table:
    return read_checkpoint_rows(layout, read_checkpoint(layout, number), kind)


def told(layout: CacheLayout, *, rebuild: bool = False) -> tuple[list[Damage], list[str]]:
    notes: list[str] = []
    return verify_cache(layout, rebuild_checkpoints=rebuild, on_note=notes.append), notes


def test_intact_checkpoints_are_neither_damaged_nor_noted(layout: CacheLayout) -> None:
    assert told(layout) == ([], [])
    assert [file_of(layout, number).exists() for number in (1, 3)] == [True, True]


def test_a_missing_checkpoint_is_noted_and_no_damage(layout: CacheLayout) -> None:
    file_of(layout, 1).unlink()

    assert told(layout) == (
        [],
        ["checkpoints/000000000001.json is missing; its commits are read instead, which is slower"],
    )


def test_a_missing_checkpoint_is_made_again_where_that_is_asked_for(layout: CacheLayout) -> None:
    before = file_of(layout, 1).read_bytes()
    file_of(layout, 1).unlink()

    assert told(layout, rebuild=True) == (
        [],
        ["checkpoints/000000000001.json was missing; it was made again"],
    )
    assert file_of(layout, 1).read_bytes() == before
    assert told(layout) == ([], [])


@pytest.mark.parametrize("kind", ["index", "latents", "sources"])
def test_damaged_rows_of_a_checkpoint_are_named(layout: CacheLayout, kind: str) -> None:
    file = rows_file(layout, 3, kind)
    file.write_bytes(b"other")

    (damage,), notes = told(layout)

    assert damage.path == f"rows/{file.name}"
    assert damage.problem == f"{kind} rows do not hash to the file's name"
    assert notes == []


@pytest.mark.parametrize("kind", ["index", "latents", "sources"])
def test_missing_rows_of_a_checkpoint_are_named(layout: CacheLayout, kind: str) -> None:
    file = rows_file(layout, 3, kind)
    file.unlink()

    assert [one.path for one in told(layout)[0]] == [f"rows/{file.name}"]


def test_damaged_checkpoints_are_made_again_where_that_is_asked_for(layout: CacheLayout) -> None:
    before = file_of(layout, 1).read_bytes()
    rows_file(layout, 3, "latents").unlink()
    file_of(layout, 1).write_bytes(b"{}")

    damaged, notes = told(layout, rebuild=True)

    assert damaged == []
    assert notes == [
        "checkpoints/000000000001.json was damaged; it was made again",
        "checkpoints/000000000003.json was damaged; it was made again",
    ]
    assert file_of(layout, 1).read_bytes() == before
    assert told(layout) == ([], [])


def test_a_checkpoint_is_not_made_again_from_damaged_commits(layout: CacheLayout) -> None:
    file_of(layout, 1).write_bytes(b"{}")
    Path(layout.url, layout.commit(0)).unlink()

    damaged, notes = told(layout, rebuild=True)

    assert [one.path for one in damaged] == [
        "checkpoints/000000000001.json",
        "commits/000000000000.json",
    ]
    assert notes == []
    assert file_of(layout, 1).read_bytes() == b"{}"


@pytest.mark.parametrize("kind", ["index", "latents", "sources"])
def test_a_checkpoint_with_a_row_too_few_is_named_though_all_hashes_are_right(
    layout: CacheLayout, kind: str
) -> None:
    forge(layout, 3, kind, stored(layout, 3, kind).slice(1))

    assert told(layout)[0] == [
        Damage(
            path="checkpoints/000000000003.json",
            problem=f"its {kind} rows are not those of its commits",
        )
    ]


def test_a_checkpoint_with_one_other_value_is_named_though_all_hashes_are_right(
    layout: CacheLayout,
) -> None:
    rows = stored(layout, 1, "latents")
    place = rows.schema.get_field_index("loudness_dbfs")
    other = rows.set_column(place, rows.schema[place], pa.array([-20.0] * 3 + [-20.5]))
    forge(layout, 1, "latents", other)

    assert [one.path for one in told(layout)[0]] == ["checkpoints/000000000001.json"]


def test_a_checkpoint_without_a_kind_that_its_commits_have_is_named(layout: CacheLayout) -> None:
    forge(layout, 1, "sources", None)

    (damage,) = told(layout)[0]

    assert damage.problem == "its sources rows are not those of its commits"


def test_codes_in_another_order_are_no_damage(layout: CacheLayout) -> None:
    """Another version of the writer may number the same values otherwise."""
    index = stored(layout, 1, INDEX)
    clips = index["clip"].combine_chunks()
    last = len(clips.dictionary) - 1
    codes = pa.array([last - code for code in clips.indices.to_pylist()], pa.int32())
    recoded = pa.DictionaryArray.from_arrays(codes, clips.dictionary[::-1])
    assert recoded.to_pylist() == clips.to_pylist()
    forge(layout, 1, INDEX, index.set_column(0, index.schema[0], recoded))
    assert stored(layout, 1, INDEX)["clip"].combine_chunks().indices != clips.indices

    assert told(layout) == ([], [])


@pytest.mark.parametrize("part", ["commit", "previous"])
def test_a_checkpoint_of_other_commits_is_named(layout: CacheLayout, part: str) -> None:
    true = read_checkpoint(layout, 3)
    digests = {"commit": true.commit, "previous": true.previous} | {part: "0" * 64}
    forged = Checkpoint(number=3, files=true.files, **digests)
    layout.storage.replace(layout.checkpoint(3), forged.to_json())

    assert told(layout)[0] == [
        Damage(
            path="checkpoints/000000000003.json",
            problem="the commits it names are not those that are there",
        )
    ]


def test_a_checkpoint_of_commits_that_are_gone_is_named(layout: CacheLayout) -> None:
    for number in (3, 4):
        Path(layout.url, layout.commit(number)).unlink()

    damaged = {one.path: one.problem for one in told(layout)[0]}

    assert damaged == {
        "checkpoints/000000000003.json": "stands for commits up to 3; the log ends at 2",
        "refs/current.json": "names commit 4; the log ends at 2",
    }


def test_a_checkpoint_of_a_gap_is_read_and_no_damage(layout: CacheLayout) -> None:
    for number in (2, 3):
        Path(layout.url, layout.commit(number)).unlink()

    assert [one.path for one in told(layout)[0]] == ["commits/000000000002.json"]
    file_of(layout, 3).write_bytes(b"{}")
    assert [one.path for one in told(layout)[0]] == [
        "checkpoints/000000000003.json",
        "commits/000000000002.json",
    ]


def test_a_checkpoint_at_a_number_that_none_ends_at_is_named(layout: CacheLayout) -> None:
    true = read_checkpoint(layout, 1)
    other = Checkpoint(number=2, commit=true.commit, previous=None, files=true.files)
    layout.storage.replace(layout.checkpoint(2), other.to_json())

    (damage,) = told(layout)[0]

    assert (damage.path, damage.problem) == (
        "checkpoints/000000000002.json",
        "no checkpoint ends at commit 2",
    )


def test_a_checkpoint_made_again_opens_the_same_snapshot(layout: CacheLayout) -> None:
    before = load_snapshot(layout).index.to_pylist()
    file_of(layout, 3).unlink()
    told(layout, rebuild=True)

    assert load_snapshot(layout).index.to_pylist() == before
    assert make_checkpoint(layout, 3) == read_checkpoint(layout, 3)
