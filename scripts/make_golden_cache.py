"""Writes ``tests/golden/cache``: a cache of today's format, which every later version must read.

It is made once for each version of the format; a new one is made only when the version is raised.

    python scripts/make_golden_cache.py tests/golden/cache
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import AnnotationRow, TombstoneRow, rows_to_table
from latents.recipe import Recipe
from latents.testing import commit_clips, fake_clips, fake_recipes, quarantine_table

RUN = {"started": "2026-11-21T00:00:00Z"}


def make_golden_cache(root: Path) -> None:
    """Five clips by one recipe, four by a later one, one that left, and one of every other row."""
    layout = create_cache(root)
    before, after = fake_recipes(weights="before"), fake_recipes(weights="after")
    clips = fake_clips(5)
    commit_clips(layout, clips[:3], before)
    commit_clips(layout, clips[3:], before)
    name_current(layout, "previous", before)
    log = CommitLog(layout)
    left = clips[4].key.source_digest
    annotation = AnnotationRow(
        source=clips[0].key.source_digest, label="rain", caption=None, split="train"
    )
    log.append(
        {
            "quarantine": quarantine_table("f" * 64, segment=1),
            "annotations": rows_to_table("annotations", [annotation]),
        },
        RUN,
    )
    tombstone = TombstoneRow(reason="dropped", uri=None, source=left, clip=None)
    log.append({"tombstones": rows_to_table("tombstones", [tombstone])}, RUN)
    commit_clips(layout, clips[:4], after)
    name_current(layout, "current", after)


def name_current(layout: CacheLayout, name: str, recipes: dict[str, Recipe]) -> None:
    """Points a ref at the head."""
    digests = {field: recipe.digest for field, recipe in recipes.items()}
    write_ref(layout, name, Ref(commit=CommitLog(layout).head(), recipes=digests))


def main() -> None:
    """Replaces the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    root: Path = parser.parse_args().root
    if root.exists():
        shutil.rmtree(root)
    make_golden_cache(root)


if __name__ == "__main__":
    main()
