"""Snapshots: the rows up to a commit, and which quarantine events are still open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.rows import RowKind, row_schema, rows_to_table
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


def test_an_empty_cache_has_an_empty_snapshot(tmp_path: Path) -> None:
    snapshot = load_snapshot(create_cache(tmp_path))

    assert snapshot.commit == -1
    assert snapshot.latents.num_rows == snapshot.sources.num_rows == 0
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


def test_a_clip_that_was_committed_twice_counts_once(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    rows = load_snapshot(layout).rows_of(VIDEO)
    log = CommitLog(layout, seen=CommitLog(layout).head())  # a driver that promised not to
    log.append({"latents": rows}, {})

    assert load_snapshot(layout).latents.num_rows == 6
    assert load_snapshot(layout).rows_of(VIDEO) == rows


def test_the_latest_row_of_a_source_counts(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    first, other = map(fake_source_row, fake_clips(2))
    append(layout, "sources", rows_to_table("sources", [first, other]))
    append(layout, "sources", rows_to_table("sources", [replace(first, size=2000)]))

    sources = {row["uri"]: row["size"] for row in load_snapshot(layout).sources.to_pylist()}

    assert sources == {first.uri: 2000, other.uri: 1000}


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


def test_unreadable_sources_are_told_apart_and_close_when_they_can_be_read(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    row = fake_source_row(fake_clips(1)[0])
    for uri in ("file:///a.mp4", "file:///b.mp4", row.uri):
        append(layout, "quarantine", quarantine_table("", source=uri))
    append(layout, "sources", rows_to_table("sources", [row]))

    events = load_snapshot(layout).open_quarantine()

    assert [event["source"] for event in events] == ["file:///a.mp4", "file:///b.mp4"]


def test_a_snapshot_of_a_commit_that_is_not_there_is_damage(tmp_path: Path) -> None:
    layout = make_cache(tmp_path)

    with pytest.raises(DamagedError) as caught:
        load_snapshot(layout, 2)
    assert caught.value.path == "commits/000000000002.json"


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
    import hashlib

    line = b'["a","kl.video",[8,4,2,2],"' + b"d" * 64 + b'"]\n'
    assert content_digest([ENTRY]) == hashlib.sha256(line).hexdigest()
