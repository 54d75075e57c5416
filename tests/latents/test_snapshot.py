"""Snapshots: the rows up to a commit, and which quarantine events are still open."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latents.cache.checkpoint import INDEX_SCHEMA
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.rows import (
    AnnotationRow,
    QuarantineEvent,
    RowKind,
    TombstoneRow,
    row_schema,
    rows_to_table,
)
from latents.cache.snapshot import content_digest, load_snapshot
from latents.errors import DamagedError
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    fake_source_row,
    make_cache,
    quarantine_table,
)

RECIPES = fake_recipes()
VIDEO = RECIPES["kl.video"].digest


def append(layout: CacheLayout, kind: RowKind, table: pa.Table) -> None:
    CommitLog(layout).append({kind: table}, {})


def end(layout: CacheLayout, **names: str) -> None:
    every: dict[str, Any] = {"uri": None, "source": None, "clip": None}
    row = TombstoneRow(reason="dropped", **(every | names))
    append(layout, "tombstones", rows_to_table("tombstones", [row]))


def with_event(table: pa.Table, event: QuarantineEvent) -> pa.Table:
    """Something else that happened to the same."""
    index = table.schema.get_field_index("event")
    return table.set_column(index, table.schema.field(index), pa.array([event] * table.num_rows))


def test_an_empty_cache_has_an_empty_snapshot(tmp_path: Path) -> None:
    snapshot = load_snapshot(create_cache(tmp_path))

    assert snapshot.commit == -1
    tables = ("index", "sources", "source_history", "quarantine", "annotations", "tombstones")
    assert [getattr(snapshot, name).num_rows for name in tables] == [0] * 6
    assert snapshot.open_quarantine() == []
    assert snapshot.rows_of(VIDEO).num_rows == 0


def test_a_snapshot_holds_what_was_committed_up_to_it(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=3, clips_per_commit=1)

    assert [load_snapshot(layout, n).rows_of(VIDEO).num_rows for n in (-1, 0, 1, 2)] == [0, 1, 2, 3]
    assert load_snapshot(layout).commit == 2


def test_rows_of_a_recipe_are_in_order_of_clip(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=5)
    commit_clips(layout, fake_clips(5), fake_recipes(weights="other"))

    rows = load_snapshot(layout).rows_of(VIDEO)

    assert rows["clip"].to_pylist() == sorted(str(clip.key) for clip in fake_clips(5))
    assert set(rows["recipe"].to_pylist()) == {VIDEO}
    assert rows.schema.names == row_schema("latents").names


def test_a_clip_that_was_committed_twice_counts_once_as_it_came_last(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    rows = load_snapshot(layout).rows_of(VIDEO)
    index = rows.schema.get_field_index("offset")
    later = rows.set_column(index, rows.schema.field(index), pa.array([7, 8]))
    log = CommitLog(layout, seen=CommitLog(layout).head())  # a driver that promised not to
    log.append({"latents": later}, {})

    assert load_snapshot(layout).index.num_rows == 6
    assert load_snapshot(layout).rows_of(VIDEO) == later


def test_the_index_says_which_rows_there_are(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=3, clips_per_commit=2)
    snapshot = load_snapshot(layout)
    whole = pa.concat_tables([snapshot.rows_of(recipe.digest) for recipe in RECIPES.values()])
    names = ["clip", "field", "recipe", "source", "segment", "shard"]

    assert snapshot.index.schema == INDEX_SCHEMA
    assert snapshot.index["commit"].to_pylist() == [0] * 4 + [1] * 2
    by_clip = [("clip", "ascending"), ("field", "ascending")]
    found = snapshot.index.select(names).to_pylist()
    wanted = whole.select(names).sort_by(by_clip).to_pylist()
    assert sorted(found, key=lambda row: (row["clip"], row["field"])) == wanted


def test_what_left_is_gone_and_an_earlier_commit_still_has_it(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    first, second = fake_clips(2)
    end(layout, source=first.key.source_digest, uri=fake_source_row(first).uri)

    now, before = load_snapshot(layout), load_snapshot(layout, 0)

    assert now.rows_of(VIDEO)["clip"].to_pylist() == [str(second.key)]
    assert now.index["clip"].to_pylist() == [str(second.key)] * 2
    assert now.sources["digest"].to_pylist() == [second.key.source_digest]
    assert now.source_history.num_rows == 2
    assert before.rows_of(VIDEO).num_rows == before.sources.num_rows == 2
    assert (now.tombstones.num_rows, before.tombstones.num_rows) == (1, 0)


def test_what_left_and_came_back_is_there(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=1)
    (clip,) = fake_clips(1)
    rows = load_snapshot(layout).rows_of(VIDEO)
    end(layout, source=clip.key.source_digest)
    CommitLog(layout, seen=1).append({"latents": rows}, {})

    assert [load_snapshot(layout, n).rows_of(VIDEO).num_rows for n in (0, 1, 2)] == [1, 0, 1]


def test_rows_of_a_recipe_that_left_do_not_come_with_those_of_another(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    other = fake_recipes(weights="other")
    commit_clips(layout, fake_clips(2), other)
    end(layout, recipe=VIDEO)

    snapshot = load_snapshot(layout)

    assert snapshot.rows_of(VIDEO).num_rows == 0
    assert snapshot.rows_of(other["kl.video"].digest).num_rows == 2
    assert snapshot.rows_of(RECIPES["kl.audio"].digest).num_rows == 2


def test_the_latest_row_of_a_source_counts(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    first, other = map(fake_source_row, fake_clips(2))
    append(layout, "sources", rows_to_table("sources", [first, other]))
    append(layout, "sources", rows_to_table("sources", [replace(first, size=2000)]))

    sources = {row["uri"]: row["size"] for row in load_snapshot(layout).sources.to_pylist()}

    assert sources == {first.uri: 2000, other.uri: 1000}


def test_the_latest_annotation_of_a_source_counts(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    for source, label in (("a" * 64, "dog"), ("b" * 64, "cat"), ("a" * 64, "wolf")):
        row = AnnotationRow(source=source, label=label, caption=None, split=None)
        append(layout, "annotations", rows_to_table("annotations", [row]))

    annotations = load_snapshot(layout).annotations

    assert {row["source"][0]: row["label"] for row in annotations.to_pylist()} == {
        "a": "wolf",
        "b": "cat",
    }


def test_an_event_is_open_until_latents_come_after_it(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    (clip,) = fake_clips(1)
    append(layout, "quarantine", quarantine_table(clip.key.source_digest, segment=0))
    (event,) = load_snapshot(layout).open_quarantine()
    assert (event["source"], event["segment"], event["error_class"]) == (
        "file:///bad.mp4",
        0,
        "DecodeError",
    )

    commit_clips(layout, [clip], RECIPES)

    assert load_snapshot(layout).open_quarantine() == []


def test_latents_from_before_an_event_do_not_close_it(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    (clip,) = fake_clips(1)
    commit_clips(layout, [clip], RECIPES)
    append(layout, "quarantine", quarantine_table(clip.key.source_digest, segment=0))

    assert len(load_snapshot(layout).open_quarantine()) == 1


def test_latents_beside_an_event_close_it(tmp_path: Path) -> None:
    """One commit holds both where a clip failed and was then made: events go first."""
    layout = make_cache(tmp_path / "cache", num_clips=1)
    (clip,) = fake_clips(1)
    both: dict[RowKind, pa.Table] = {
        "latents": load_snapshot(layout).rows_of(VIDEO),
        "quarantine": quarantine_table(clip.key.source_digest, segment=0),
    }
    fresh = create_cache(tmp_path / "fresh")
    CommitLog(fresh).append(both, {})

    assert load_snapshot(fresh).open_quarantine() == []


def test_an_event_of_a_whole_source_is_closed_by_any_of_its_clips(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    (clip,) = fake_clips(1)
    append(layout, "quarantine", quarantine_table(clip.key.source_digest))
    commit_clips(layout, [clip], RECIPES)

    assert load_snapshot(layout).open_quarantine() == []


def test_other_segments_stay_quarantined(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    (clip,) = fake_clips(1)
    append(layout, "quarantine", quarantine_table(clip.key.source_digest, segment=1))
    commit_clips(layout, [clip], RECIPES)

    assert [event["segment"] for event in load_snapshot(layout).open_quarantine()] == [1]


def test_an_event_that_comes_again_is_one(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    for _ in range(2):
        append(layout, "quarantine", quarantine_table("a" * 64))

    assert len(load_snapshot(layout).open_quarantine()) == 1


def test_a_source_that_is_of_no_interest_any_more_is_not_open(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    for source in ("a" * 64, "b" * 64):
        append(layout, "quarantine", quarantine_table(source))
    append(layout, "quarantine", with_event(quarantine_table("a" * 64), "dropped"))

    events = load_snapshot(layout).open_quarantine()

    assert [event["source_digest"] for event in events] == ["b" * 64]


def test_one_that_is_rejected_again_after_that_is_open(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    for event in ("rejected", "dropped", "rejected"):
        append(layout, "quarantine", with_event(quarantine_table("a" * 64), event))

    assert [event["event"] for event in load_snapshot(layout).open_quarantine()] == ["rejected"]


def test_unreadable_sources_are_told_apart_and_close_when_they_can_be_read(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    row = fake_source_row(fake_clips(1)[0])
    for uri in ("file:///a.mp4", "file:///b.mp4", row.uri):
        append(layout, "quarantine", quarantine_table("", source=uri))
    append(layout, "sources", rows_to_table("sources", [row]))

    events = load_snapshot(layout).open_quarantine()

    assert [event["source"] for event in events] == ["file:///a.mp4", "file:///b.mp4"]


@pytest.mark.parametrize("number", [2, 10**6, 10**12])
def test_a_snapshot_of_a_commit_that_is_not_there_is_damage(tmp_path: Path, number: int) -> None:
    layout = make_cache(tmp_path)

    with pytest.raises(DamagedError) as caught:
        load_snapshot(layout, number)
    assert caught.value.path == "commits/000000000002.json"


@pytest.mark.parametrize("kind", ["sources", "quarantine", "annotations"])
def test_rows_that_are_read_later_are_damage_then(tmp_path: Path, kind: RowKind) -> None:
    layout = create_cache(tmp_path)
    row = AnnotationRow(source="a" * 64, label="dog", caption=None, split=None)
    tables: dict[RowKind, pa.Table] = {
        "sources": rows_to_table("sources", [fake_source_row(fake_clips(1)[0])]),
        "quarantine": quarantine_table("a" * 64),
        "annotations": rows_to_table("annotations", [row]),
    }
    commit = CommitLog(layout).append(tables, {})
    assert commit is not None
    name = layout.rows(commit.files[kind].sha256)
    layout.storage.delete(name)

    with pytest.raises(DamagedError) as caught:
        getattr(load_snapshot(layout), kind)
    assert caught.value.path == name


ENTRY = {"clip": "a", "field": "kl.video", "shape": [8, 4, 2, 2], "digest": "d" * 64}


def test_the_content_digest_does_not_depend_on_order() -> None:
    other = ENTRY | {"clip": "b"}

    assert content_digest([ENTRY, other]) == content_digest([other, ENTRY])


@pytest.mark.parametrize(
    "change",
    [{"clip": "b"}, {"field": "kl.audio"}, {"shape": [8, 4, 4, 1]}, {"digest": "e" * 64}],
)
def test_the_content_digest_depends_on_every_part(change: dict[str, object]) -> None:
    assert content_digest([ENTRY | change]) != content_digest([ENTRY])
    assert content_digest([ENTRY, ENTRY | change]) != content_digest([ENTRY])


def test_the_content_digest_is_a_stated_function() -> None:
    line = b'["a","kl.video",[8,4,2,2],"' + b"d" * 64 + b'"]\n'
    assert content_digest([ENTRY]) == hashlib.sha256(line).hexdigest()
