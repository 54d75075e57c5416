"""What a cache says of itself: counts, statistics of its channels, digests."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from latents.cache.histogram import Histogram
from latents.cache.inspect import inspect_cache, summarise_level
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import rows_to_table
from latents.cache.snapshot import content_digest
from latents.errors import DamagedError
from latents.testing import (
    FakeClip,
    commit_clips,
    fake_clips,
    fake_recipes,
    make_cache,
    quarantine_table,
)
from tests.latents.long_history import latents_file, latents_of

RECIPES = fake_recipes()


def test_clips_windows_sources_and_bytes_are_counted(tmp_path: Path) -> None:
    summary = inspect_cache(make_cache(tmp_path, num_clips=5))

    kl = summary.levels["kl"]
    assert summary.levels.keys() == {"kl"}
    assert (kl.num_sources, kl.num_clips, kl.num_windows) == (5, 5, 25)
    assert (summary.commit, summary.ref, summary.num_quarantined) == (2, "current", 0)
    assert {name: field.num_bytes for name, field in summary.fields.items()} == {
        "kl.video": 5 * 8 * 16 * 2,
        "kl.audio": 5 * 5 * 16 * 2,
    }


def test_fields_name_their_recipes(tmp_path: Path) -> None:
    fields = inspect_cache(make_cache(tmp_path)).fields

    assert {name: (field.recipe, field.num_clips) for name, field in fields.items()} == {
        name: (recipe.digest, 3) for name, recipe in RECIPES.items()
    }


@pytest.mark.parametrize("name", ["kl.video", "kl.audio"])
def test_mean_and_std_of_each_channel_are_those_of_all_tensors(tmp_path: Path, name: str) -> None:
    field = inspect_cache(make_cache(tmp_path, num_clips=4)).fields[name]

    moments = np.concatenate([clip.tensors[name] for clip in fake_clips(4)]).astype(np.float64)
    mean, variance = moments[:, :2], np.exp(moments[:, 2:])
    axes = (0, 2, 3)
    assert field.mean is not None
    assert field.std is not None
    # Sums of some hundred float64 values: the order of adding changes the last digits only.
    np.testing.assert_allclose(field.mean, mean.mean(axis=axes), rtol=1e-12)
    std = np.sqrt(mean.var(axis=axes) + variance.mean(axis=axes))
    np.testing.assert_allclose(field.std, std, rtol=1e-12)


def test_the_content_digest_does_not_depend_on_shards_or_order(tmp_path: Path) -> None:
    one_shard = make_cache(tmp_path / "one", num_clips=4, clips_per_commit=4)
    four_shards = create_cache(tmp_path / "four")
    for clip in reversed(fake_clips(4)):
        commit_clips(four_shards, [clip], RECIPES)
    digests = {name: recipe.digest for name, recipe in RECIPES.items()}
    write_ref(four_shards, "current", Ref(commit=3, recipes=digests))

    first, second = (inspect_cache(layout).levels["kl"] for layout in (one_shard, four_shards))

    assert first.content_digest == second.content_digest


def test_the_content_digest_changes_with_one_value(tmp_path: Path) -> None:
    same = inspect_cache(make_cache(tmp_path / "a")).levels["kl"].content_digest
    other_layout = create_cache(tmp_path / "b")
    clips = fake_clips(3)
    tensors = {name: tensor.copy() for name, tensor in clips[0].tensors.items()}
    tensors["kl.audio"][0, 0, 0, 0] += 1
    commit_clips(other_layout, [FakeClip(key=clips[0].key, tensors=tensors), *clips[1:]], RECIPES)

    assert inspect_cache(other_layout).levels["kl"].content_digest != same


def test_other_recipes_are_not_counted(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    before = inspect_cache(layout)
    commit_clips(layout, fake_clips(5), fake_recipes(weights="new"))

    assert inspect_cache(layout) == before


def test_before_the_first_ingest_completes_everything_counts(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    commit_clips(layout, fake_clips(2), RECIPES)

    summary = inspect_cache(layout)

    assert (summary.ref, summary.commit) == (None, 0)
    assert summary.levels["kl"].num_clips == 2


def test_an_empty_cache_has_neither_levels_nor_fields(tmp_path: Path) -> None:
    summary = inspect_cache(create_cache(tmp_path))

    assert (summary.commit, summary.levels, summary.fields) == (-1, {}, {})
    assert summary.num_quarantined == 0


def test_a_field_without_latents_has_no_statistics(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    digests = {name: recipe.digest for name, recipe in RECIPES.items()}
    write_ref(layout, "current", Ref(commit=-1, recipes=digests))

    field = inspect_cache(layout).fields["kl.video"]

    assert (field.num_clips, field.num_bytes, field.mean, field.std) == (0, 0, None, None)


def test_open_quarantine_events_are_counted(tmp_path: Path) -> None:
    layout = make_cache(tmp_path)
    for digest in ("a" * 64, "b" * 64):
        CommitLog(layout).append({"quarantine": quarantine_table(digest)}, {})
    digests = {name: recipe.digest for name, recipe in RECIPES.items()}
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=digests))

    assert inspect_cache(layout).num_quarantined == 2


def test_damaged_rows_are_damage(tmp_path: Path) -> None:
    layout = make_cache(tmp_path)
    path = Path(layout.url, latents_file(layout, 0))
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DamagedError) as caught:
        inspect_cache(layout)
    assert caught.value.path == f"rows/{path.name}"


def histograms(layout: CacheLayout, field: str) -> dict[str, Histogram]:
    found = inspect_cache(layout).fields[field].histograms
    return {histogram.title: histogram for histogram in found}


def test_each_field_has_histograms_of_what_its_rows_say(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=5)
    video, audio = histograms(layout, "kl.video"), histograms(layout, "kl.audio")

    assert list(video) == ["clip length", "loudness", "encode time", "tensors per shard"]
    assert list(audio) == ["windows per clip", "loudness", "encode time", "tensors per shard"]
    assert (video["clip length"].edges, video["clip length"].counts) == ((8, 9), (5,))
    assert (audio["windows per clip"].edges, audio["windows per clip"].counts) == ((5, 6), (5,))
    assert (video["loudness"].median, video["loudness"].unit) == (-20, "dBFS")
    assert (video["encode time"].maximum, video["encode time"].unit) == (0, "seconds")


def test_bytes_are_counted_by_shard(tmp_path: Path) -> None:
    """Two shards with two clips each, and one with one."""
    shards = histograms(make_cache(tmp_path, num_clips=5), "kl.video")["tensors per shard"]

    assert (shards.minimum, shards.median, shards.maximum) == (256, 512, 512)
    assert sum(shards.counts) == 3


def test_clips_without_loudness_are_told_apart(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2)
    rows = [
        replace(row, loudness_dbfs=None if index % 4 == 0 else -30.5, encode_seconds=index)
        for index, row in enumerate(latents_of(layout, 0))
    ]
    layout = create_cache(tmp_path / "other")
    CommitLog(layout).append({"latents": rows_to_table("latents", rows)}, {})

    loudness = histograms(layout, rows[0].field)["loudness"]

    assert (loudness.num_absent, loudness.counts, loudness.median) == (1, (1,), -30.5)


def test_a_summary_is_json(tmp_path: Path) -> None:
    summary = inspect_cache(make_cache(tmp_path))

    found = json.loads(json.dumps(asdict(summary)))

    assert found["fields"]["kl.video"]["histograms"][0]["counts"] == [3]


def test_an_open_level_has_the_summary_of_its_cache(tmp_path: Path) -> None:
    layout = make_cache(tmp_path)

    level = open_cache(tmp_path, level="kl")

    assert summarise_level(level) == inspect_cache(layout).levels["kl"]


def test_a_level_has_the_clips_that_all_its_fields_have(tmp_path: Path) -> None:
    """The other clip's sound is missing: its pictures count for the field alone."""
    full = make_cache(tmp_path / "full", num_clips=2)
    rows = latents_of(full, 0)
    last = max(row.clip for row in rows)
    layout = create_cache(tmp_path / "part")
    part = [row for row in rows if (row.clip, row.field) != (last, "kl.audio")]
    CommitLog(layout).append({"latents": rows_to_table("latents", part)}, {})

    summary = inspect_cache(layout)

    assert (summary.levels["kl"].num_clips, summary.levels["kl"].num_sources) == (1, 1)
    assert summary.levels["kl"].num_windows == 5
    assert summary.fields["kl.video"].num_clips == 2
    assert summary.levels["kl"].content_digest == content_digest(
        asdict(row) for row in rows if row.clip != last
    )
