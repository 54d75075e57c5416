"""The committer: nothing twice, nothing torn, on time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.rows import AnnotationRow, SourceRow, TombstoneRow
from latents.cache.snapshot import load_snapshot
from latents.clip import ClipKey, WindowSpec
from latents.recipe import Recipe
from latents.store.tar_store import TarShardWriter
from pipeline.committer import Committer
from pipeline.encoded import ChannelSums, EncodedClip

FIELDS = ("clip.audio", "clip.video", "kl.audio", "kl.video", "perceptual.video")
RECIPES = {
    name: Recipe(field=name, implementation=1, specification={"of": name}) for name in FIELDS
}
SUMS = ChannelSums(count=1, mean_sum=(0.0,), square_sum=(1.0,))


SOURCE: dict[str, Any] = {
    "uri": "/videos/1.mp4",
    "size": 1,
    "mtime_ns": 1,
    "etag": "",
    "digest": "1" * 64,
    "segmentation": "s",
    "num_segments": 1,
}


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")


def committer(
    layout: CacheLayout,
    *,
    present: set[tuple[str, str]] | None = None,
    shard_bytes: int = 1 << 30,
    clock: Clock | None = None,
) -> Committer:
    return Committer(
        layout,
        recipes=RECIPES,
        seen=-1,
        present=present if present is not None else set(),
        open_shard=lambda: TarShardWriter(layout.storage),
        shard_bytes=shard_bytes,
        commit_seconds=30,
        versions="torch 1",
        tolerances={"clip": 0.0, "kl": 1e-3, "perceptual": 3e-2},
        run={},
        clock=clock or Clock(),
    )


def encoded(index: int) -> EncodedClip:
    rng = np.random.default_rng(index)
    return EncodedClip(
        key=ClipKey(source_digest=str(index) * 64, start_frame=0, fps=10),
        segment=0,
        tensors={
            "clip.video": rng.integers(0, 255, (16, 3, 8, 8), dtype=np.uint8),
            "clip.audio": rng.normal(size=(1, 160)).astype(np.float32),
            "kl.video": rng.normal(size=(16, 8, 1, 1)).astype(np.float16),
            "kl.audio": rng.normal(size=(1, 8, 32, 32)).astype(np.float16),
            "perceptual.video": rng.normal(size=(1, 32, 4, 4)).astype(np.float16),
        },
        channel_sums={"kl.video": SUMS, "kl.audio": SUMS, "perceptual.video": SUMS},
        grid=WindowSpec(stride=16).grid(0, 16),
        sample_rate=100,
        loudness_dbfs=-20.0,
        sound_first_frame=0,
        sound_stop_frame=16,
        device="cpu",
        encode_seconds=0.1,
        num_kl_images=17,
    )


def rows(layout: CacheLayout) -> list[tuple[str, str]]:
    index = load_snapshot(layout).index
    pairs = zip(index["field"].to_pylist(), index["source"].to_pylist(), strict=True)
    return sorted((field, source[-1]) for field, source in pairs)


def files(layout: CacheLayout, folder: str) -> list[str]:
    return [file.name for file in layout.storage.list(folder)]


def test_nothing_is_in_the_cache_before_a_flush_and_all_of_it_after(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_clip(encoded(1))
    assert rows(layout) == []
    one.flush()
    assert rows(layout) == [(name, "1") for name in FIELDS]


def test_levels_of_one_commit_lie_in_shards_of_their_own(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_clip(encoded(1))
    one.add_clip(encoded(2))
    one.flush()
    index = load_snapshot(layout).index
    shards = dict(zip(index["field"].to_pylist(), index["shard"].to_pylist(), strict=True))
    assert shards["clip.video"] == shards["clip.audio"] != shards["kl.video"] == shards["kl.audio"]
    assert shards["perceptual.video"] not in (shards["clip.video"], shards["kl.video"])
    assert len(files(layout, "shards")) == 3


def test_a_row_says_how_far_encoding_again_may_come_out(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_clip(encoded(1))
    one.flush()
    snapshot = load_snapshot(layout)
    found = {
        name: snapshot.rows_of(recipe.digest)["tolerance"].to_pylist()
        for name, recipe in RECIPES.items()
    }
    assert found == {
        "clip.audio": [0.0],
        "clip.video": [0.0],
        "kl.audio": [1e-3],
        "kl.video": [1e-3],
        "perceptual.video": [3e-2],
    }


def test_a_clip_made_twice_is_kept_once(layout: CacheLayout) -> None:
    # A worker died after it had passed the clip on, and its task was given to another.
    one = committer(layout)
    assert one.add_clip(encoded(1))
    assert not one.add_clip(encoded(1))
    one.flush()
    assert rows(layout) == [(name, "1") for name in FIELDS]


def test_fields_that_the_cache_holds_are_not_written_again(layout: CacheLayout) -> None:
    clip = encoded(1)
    held = {(RECIPES[name].digest, str(clip.key)) for name in ("clip.video", "clip.audio")}
    one = committer(layout, present=held)
    one.add_clip(clip)
    one.flush()
    assert rows(layout) == [("kl.audio", "1"), ("kl.video", "1"), ("perceptual.video", "1")]


def test_a_full_shard_is_committed_at_once(layout: CacheLayout) -> None:
    one = committer(layout, shard_bytes=1)
    one.add_clip(encoded(1))
    assert CommitLog(layout).head() == 0


def test_work_is_committed_when_the_time_is_up(layout: CacheLayout) -> None:
    clock = Clock()
    one = committer(layout, clock=clock)
    one.add_clip(encoded(1))
    clock.seconds = 31
    one.add_clip(encoded(2))
    assert len(rows(layout)) == 2 * len(FIELDS)


def test_sources_annotations_and_tombstones_are_committed_alone_too(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_source(SourceRow(**SOURCE))
    one.add_annotation(AnnotationRow(source="1" * 64, label="rain", caption=None, split=None))
    one.add_tombstone(TombstoneRow(reason="changed", uri=None, source="2" * 64, clip=None))
    one.flush()
    snapshot = load_snapshot(layout)
    assert snapshot.sources["uri"].to_pylist() == ["/videos/1.mp4"]
    assert snapshot.annotations["label"].to_pylist() == ["rain"]
    assert snapshot.tombstones["source"].to_pylist() == ["2" * 64]


def test_what_is_discarded_leaves_no_file(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_clip(encoded(1))
    one.discard()
    one.flush()
    assert CommitLog(layout).head() == -1
    assert files(layout, "shards") == []
