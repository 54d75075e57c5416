"""Pointing a ref at a commit, if all that it would name is there."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, check_ref_name, move_ref, read_ref, require_ref
from latents.cache.snapshot import load_snapshot
from latents.durable import reading_from
from latents.errors import CacheError


def pin(layout: CacheLayout, name: str, *, to: str = "current", commit: int | None = None) -> Ref:
    """Points a ref at what another names, or at an earlier commit; returns what it is now.

    Args:
        layout: The cache.
        name: Of the ref; it is made where there is none.
        to: The ref to copy. With a commit, only the recipes are its, and only where there is no
            ref of that name yet: an existing one keeps its own.
        commit: Number of a commit.

    Raises:
        CacheError: There is no such ref or commit, or latents of it are gone.
        ConfigError: That is no name for a ref.
    """
    check_ref_name(name)
    # A gc that runs meanwhile would not know of the new ref.
    with driving(layout, purpose="refs set"):
        wanted = require_ref(layout, to) if commit is None else _at(layout, name, to, commit)
        _require_shards(layout, wanted)
        move_ref(layout, name, lambda _: wanted)
    return wanted


def _at(layout: CacheLayout, name: str, to: str, commit: int) -> Ref:
    head = CommitLog(layout).head()
    if not 0 <= commit <= head:
        raise CacheError(
            f"{layout.url} has no commit {commit}; the latest is {head}, and `mmldm cache log` "
            "lists them"
        )
    recipes = (read_ref(layout, name) or require_ref(layout, to)).recipes
    return Ref(commit=commit, recipes=recipes)


def _require_shards(layout: CacheLayout, ref: Ref) -> None:
    """Raises `CacheError` where the ref would name nothing, or latents that were removed."""
    index = load_snapshot(layout, ref.commit).index
    wanted = pa.array(list(ref.recipes.values()), pa.string())
    rows = index.filter(pc.is_in(index["recipe"], value_set=wanted))
    missing = set(ref.recipes.values()) - set(rows["recipe"].cast(pa.string()).to_pylist())
    if missing:
        fields = sorted(field for field, recipe in ref.recipes.items() if recipe in missing)
        raise CacheError(
            f"{layout.url}: at commit {ref.commit} nothing was made by the recipes of "
            f"{', '.join(fields)}; name a later commit, or another ref with --to"
        )
    with reading_from(layout.url):
        present = {file.name for file in layout.storage.list("shards")}
    shards = set(pc.unique(rows["shard"].cast(pa.string())).to_pylist())
    gone = sorted(shard for shard in shards if layout.shard(shard) not in present)
    if gone:
        raise CacheError(
            f"{layout.url}: of the {len(shards)} shards of commit {ref.commit}, {len(gone)} are "
            f"gone, among them {layout.shard(gone[0])}; name a later commit"
        )
