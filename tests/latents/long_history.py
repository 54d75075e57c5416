"""A cache with a past, and ways to damage it, for the tests of verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from latents.cache.commit import read_commit, read_rows
from latents.cache.damage import Damage
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import AnnotationRow, LatentRow, TombstoneRow, latent_row, rows_to_table
from latents.testing import commit_clips, fake_clips, fake_recipes, quarantine_table

RECIPES = fake_recipes()
DIGESTS = {field: recipe.digest for field, recipe in RECIPES.items()}
COMMITS_PER_CHECKPOINT = 4


def shorten_checkpoints(patch: pytest.MonkeyPatch) -> None:
    for module in ("checkpoint", "verify_log", "verify_checkpoints"):
        patch.setattr(f"latents.cache.{module}.COMMITS_PER_CHECKPOINT", COMMITS_PER_CHECKPOINT)


def make_history(root: Path) -> CacheLayout:
    """Nine commits of all kinds with two checkpoints; ``old`` needs shards that the head lost.

    The shard of commit 3 is dead and there; that of commit 5 is dead and gone.
    """
    layout, clips = create_cache(root), fake_clips(8)
    commit_clips(layout, clips[0:2], RECIPES)
    commit_clips(layout, clips[2:4], RECIPES)
    write_ref(layout, "old", Ref(commit=1, recipes=DIGESTS))
    end_clips(layout, 0, 1)
    commit_clips(layout, clips[4:6], RECIPES)
    end_clips(layout, 4, 5)
    commit_clips(layout, clips[6:7], RECIPES)
    end_clips(layout, 6)
    path(layout, layout.shard(latents_of(layout, 5)[0].shard)).unlink()
    annotation = AnnotationRow(source="a" * 64, label="drum", caption=None, split="train")
    annotations = rows_to_table("annotations", [annotation])
    tables = {"annotations": annotations, "quarantine": quarantine_table("b" * 64)}
    CommitLog(layout).append(tables, {})
    commit_clips(layout, clips[7:8], RECIPES)
    write_ref(layout, "current", Ref(commit=8, recipes=DIGESTS))
    return layout


def end_clips(layout: CacheLayout, *clips: int) -> None:
    rows = [
        TombstoneRow(
            reason="dropped", uri=None, source=fake_clips(8)[clip].key.source_digest, clip=None
        )
        for clip in clips
    ]
    CommitLog(layout).append({"tombstones": rows_to_table("tombstones", rows)}, {})


def path(layout: CacheLayout, name: str) -> Path:
    return Path(layout.url, name)


def latents_of(layout: CacheLayout, commit: int) -> list[LatentRow]:
    file = read_commit(layout, commit).files["latents"]
    return [latent_row(record) for record in read_rows(layout, "latents", file).to_pylist()]


def latents_file(layout: CacheLayout, commit: int) -> str:
    return layout.rows(read_commit(layout, commit).files["latents"].sha256)


def a_row(layout: CacheLayout, field: str = "kl.video") -> LatentRow:
    """One of commit 0."""
    return next(row for row in latents_of(layout, 0) if row.field == field)


def write(file: Path, content: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(content)


def flip(file: Path, offset: int, mask: int = 0x01) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= mask
    write(file, bytes(content))


def names(layout: CacheLayout, folder: str = "") -> list[str]:
    return sorted(file.name for file in layout.storage.list(folder))


def paths(damaged: Sequence[Damage]) -> list[str]:
    return [damage.path for damage in damaged]
