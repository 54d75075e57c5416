"""Rows, tombstones and questions for tests of the commit log."""

from __future__ import annotations

from typing import TypeAlias

import pyarrow as pa

from latents.cache.commit import Commit, read_rows
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.rows import (
    RowKind,
    TombstoneReason,
    TombstoneRow,
    rows_to_table,
)
from latents.cache.snapshot import load_snapshot
from latents.recipe import Recipe
from latents.store.protocol import StoredTensor
from latents.testing import (
    FakeClip,
    fake_latent_row,
    fake_recipes,
    fake_source_row,
)

Tables: TypeAlias = dict[RowKind, pa.Table]

RECIPE = fake_recipes()["kl.video"]
OTHER_RECIPE = fake_recipes(weights="other")["kl.video"]
RUN = {"started": "2026-01-01T00:00:00Z"}


def latents(
    *clips: FakeClip, recipe: Recipe = RECIPE, shard: str = "0" * 64, digest: str = "0" * 64
) -> pa.Table:
    """Rows as if the tensors lay somewhere."""
    stored = StoredTensor(
        shard=f"{shard}.tar",
        offset=0,
        dtype="float16",
        shape=(8, 4, 2, 2),
        digest=digest,
        crc32c=(0,) * 8,
    )
    return rows_to_table(
        "latents", [fake_latent_row(clip, "kl.video", recipe, stored) for clip in clips]
    )


def sources(*clips: FakeClip) -> pa.Table:
    return rows_to_table("sources", [fake_source_row(clip) for clip in clips])


def tombstones(reason: TombstoneReason, *clips: FakeClip, whole_source: bool = False) -> pa.Table:
    """Of clips, or of the sources that they were cut from."""
    return rows_to_table(
        "tombstones",
        [
            TombstoneRow(
                reason=reason,
                uri=None,
                source=clip.key.source_digest,
                clip=None if whole_source else str(clip.key),
            )
            for clip in clips
        ],
    )


def tombstone(
    reason: TombstoneReason,
    *,
    uri: str | None = None,
    recipe: str | None = None,
    shard: str | None = None,
) -> pa.Table:
    """Of something else than a clip or source."""
    row = TombstoneRow(reason=reason, uri=uri, source=None, clip=None, recipe=recipe, shard=shard)
    return rows_to_table("tombstones", [row])


def append(layout: CacheLayout, tables: Tables, *, seen: int = -1) -> Commit | None:
    return CommitLog(layout, seen=seen).append(tables, RUN)


def appended(layout: CacheLayout, *clips: FakeClip) -> Commit:
    commit = append(layout, {"latents": latents(*clips)})
    assert commit is not None
    return commit


def clips_in(layout: CacheLayout) -> list[str]:
    """Of every row of latents, whether it counts or not."""
    log = CommitLog(layout)
    return [
        clip
        for commit in log.commits(0, log.head())
        for kind, file in commit.files.items()
        if kind == "latents"
        for clip in read_rows(layout, kind, file)["clip"].to_pylist()
    ]


def living_clips(layout: CacheLayout) -> list[str]:
    clips: list[str] = load_snapshot(layout).rows_of(RECIPE.digest)["clip"].to_pylist()
    return clips


def keys(*clips: FakeClip) -> list[str]:
    return sorted(str(clip.key) for clip in clips)
