"""The committer: nothing twice, nothing torn, on time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.snapshot import load_snapshot
from latents.clip import ClipKey, WindowSpec
from latents.recipe import Recipe
from latents.store.tar_store import TarShardWriter
from pipeline.committer import Committer
from pipeline.stages import ChannelSums, EncodedClip

FIELDS = ("clip.audio", "clip.video", "kl.audio", "kl.video")
RECIPES = {
    name: Recipe(field=name, implementation=1, specification={"of": name}) for name in FIELDS
}
SUMS = ChannelSums(count=1, mean_sum=(0.0,), square_sum=(1.0,))


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
        open_shard=lambda: TarShardWriter(layout.shards),
        shard_bytes=shard_bytes,
        commit_seconds=30,
        versions="torch 1",
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
        },
        channel_sums={"kl.video": SUMS, "kl.audio": SUMS},
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
    latents = load_snapshot(layout).latents
    pairs = zip(latents["field"].to_pylist(), latents["source"].to_pylist(), strict=True)
    return sorted((field, source[-1]) for field, source in pairs)


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
    latents = load_snapshot(layout).latents
    shards = dict(zip(latents["field"].to_pylist(), latents["shard"].to_pylist(), strict=True))
    assert shards["clip.video"] == shards["clip.audio"] != shards["kl.video"] == shards["kl.audio"]
    assert len(list(layout.shards.glob("*.tar"))) == 2


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
    assert rows(layout) == [("kl.audio", "1"), ("kl.video", "1")]


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
    assert len(rows(layout)) == 8


def test_what_is_discarded_leaves_no_file(layout: CacheLayout) -> None:
    one = committer(layout)
    one.add_clip(encoded(1))
    one.discard()
    one.flush()
    assert CommitLog(layout).head() == -1
    assert list(layout.shards.iterdir()) == []
