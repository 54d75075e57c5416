"""Which files of a cache nothing needs, and why."""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from latents.cache.checkpoint import checkpoint_numbers, read_checkpoint
from latents.cache.driver_marks import Driver
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.reach import History, Mask, kept_recipes, with_ancestors
from latents.durable import PARTIAL
from latents.errors import DamagedError

Reason = Literal[
    "orphan shard",
    "unreached shard",
    "orphan rows",
    "orphan recipe",
    "orphan checkpoint",
    "partial file",
    "stale driver mark",
]
"""``orphan``: no commit names it, or it is a checkpoint that is not of its commits. ``unreached``:
commits name it, but no ref reaches it."""

_FILES: dict[str, re.Pattern[str]] = {
    "shards": re.compile(r"shards/([0-9a-f]{64}\.[a-z]+)"),
    "rows": re.compile(r"rows/([0-9a-f]{64})\.parquet"),
    "recipes": re.compile(r"recipes/([0-9a-f]{64})\.json"),
    "checkpoints": re.compile(r"checkpoints/([0-9]{12})\.json"),
    "drivers": re.compile(r"drivers/([0-9a-f]{32})\.json"),
}
"""By folder the names of the files that are ours; others are left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreachedRecipe:
    """A recipe by which the head has latents, but that no ref reaches."""

    field: str
    recipe: str
    num_clips: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesInUse:
    """What a cache needs, by the part of a file's name that is its own."""

    shards: Set[str]
    """Reached by a ref, or by the head with a recipe that is in use."""
    shards_at_head: Set[str]
    """In which something alive lies."""
    named_shards: Set[str]
    """In which something lies that was ever committed."""
    rows: Set[str]
    recipes: Set[str]
    checkpoints: Set[str]
    stale_marks: Set[str]
    """Files of marks whose process is gone: nobody needs these."""
    unreached: tuple[UnreachedRecipe, ...]

    def is_at_head(self, name: str) -> bool:
        """Whether something alive lies in a file."""
        found = _FILES["shards"].fullmatch(name)
        return found is not None and found[1] in self.shards_at_head


def files_in_use(
    layout: CacheLayout, history: History, *, names: Collection[str], stale: Collection[Driver]
) -> FilesInUse:
    """Walks the whole log.

    Args:
        layout: The cache.
        history: Its rows, read after the names were listed.
        names: Of all files.
        stale: Marks of processes that are gone.

    Raises:
        DamagedError: The log or a recipe is damaged, or the log was cut off.
    """
    _refuse_cut_off_log(layout, history, names)
    rows, checkpoints = _rows_and_checkpoints(layout, history.snapshot.commit)
    alive = history.at_head()
    kept = history.made_by(kept_recipes(layout, history))
    everything = np.ones(history.rows.num_rows, np.bool_)
    recipes = with_ancestors(layout, history.values("recipe", everything))
    return FilesInUse(
        shards=history.shards(history.reached_by_refs() | (alive & kept)),
        shards_at_head=history.shards(alive),
        named_shards=history.shards(everything),
        rows=rows,
        recipes=recipes.union(*history.recipes.values()),
        checkpoints=checkpoints,
        stale_marks={mark.name for mark in stale},
        unreached=_unreached(history, alive & ~kept),
    )


def why_garbage(name: str, use: FilesInUse) -> Reason | None:
    """Why nothing needs a file; None where something does, or it is none of ours."""
    folder, _, base = name.rpartition("/")
    if base.startswith(PARTIAL):
        return "partial file"
    found = _FILES[folder].fullmatch(name) if folder in _FILES else None
    if found is None:
        return None
    match folder:
        case "shards" if found[1] not in use.shards:
            return "unreached shard" if found[1] in use.named_shards else "orphan shard"
        case "rows" if found[1] not in use.rows:
            return "orphan rows"
        case "recipes" if found[1] not in use.recipes:
            return "orphan recipe"
        case "checkpoints" if found[1] not in use.checkpoints:
            return "orphan checkpoint"
        case "drivers" if name in use.stale_marks:
            return "stale driver mark"
    return None


def _rows_and_checkpoints(layout: CacheLayout, head: int) -> tuple[set[str], set[str]]:
    """Digests of the files of rows that something names, and the checkpoints that are right."""
    digests: dict[int, str] = {}
    rows: set[str] = set()
    for commit in CommitLog(layout).commits(0, head):
        rows.update(file.sha256 for file in commit.files.values())
        if commit.number in checkpoint_numbers(head):
            digests[commit.number] = commit.digest
    checkpoints: set[str] = set()
    for number, digest in digests.items():
        try:
            checkpoint = read_checkpoint(layout, number)
        except DamagedError:
            continue
        if checkpoint.commit == digest:
            rows.update(file.sha256 for file in checkpoint.files.values())
            checkpoints.add(f"{number:012d}")
    return rows, checkpoints


def _refuse_cut_off_log(layout: CacheLayout, history: History, names: Collection[str]) -> None:
    """Raises `DamagedError` where commits are gone from the log's end: they may come back."""
    head = history.snapshot.commit
    named = {layout.ref(name): ref.commit for name, ref in history.refs.items()}
    for found in map(_FILES["checkpoints"].fullmatch, names):
        if found:
            named[found[0]] = int(found[1])
    for name, commit in named.items():
        if commit > head:
            raise DamagedError(
                layout.commit(commit),
                0,
                f"is named by {name}, but the log ends at {head}; nothing was removed. Copy the "
                f"missing commits back, or remove {name}",
            )


def _unreached(history: History, mask: Mask) -> tuple[UnreachedRecipe, ...]:
    rows = history.rows.filter(pa.array(mask))
    sums = rows.group_by(["field", "recipe"], use_threads=False).aggregate(
        [("clip", "count"), ("num_bytes", "sum")]
    )
    found = (
        UnreachedRecipe(
            field=row["field"],
            recipe=row["recipe"],
            num_clips=row["clip_count"],
            num_bytes=row["num_bytes_sum"],
        )
        for row in sums.to_pylist()
    )
    return tuple(sorted(found, key=lambda one: (one.field, one.recipe)))
