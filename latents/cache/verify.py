"""Verification: walk the chain, hash what it names, and say exactly what is damaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.damage import Damage, damage_of, in_order
from latents.cache.layout import FORMAT_FILE, CacheLayout, check_format
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, read_recipe, read_ref, ref_names
from latents.cache.verify_checkpoints import CheckpointVerification
from latents.cache.verify_log import VerifiedLog, verify_log
from latents.cache.verify_shards import verify_shards
from latents.durable import reading_from
from latents.errors import CacheError, DamagedError
from latents.recipe import Recipe

_RECIPE_FILE = re.compile(r"recipes/([0-9a-f]{64})\.json")


def verify_cache(
    layout: CacheLayout,
    *,
    rebuild_checkpoints: bool = False,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Damage]:
    """Everything that is not as the log says, each fault once, in order of file and place.

    Files that nothing names are no damage. Nor are shards that are gone and that no snapshot of
    the head or of a ref needs, nor checkpoints that are missing. Where a damaged log leaves open
    whether a shard that is gone is needed, only the log's damage is told.

    Args:
        layout: The cache.
        rebuild_checkpoints: Whether missing and damaged checkpoints are made again from their
            commits, where those are whole; a damaged one that was is not told as damage.
        on_shard: Called with (shards checked, shards in all).
        on_note: Takes sentences on what is no damage: checkpoints missing or made again, and
            that there is no ``refs/current``.

    Raises:
        CacheError: There is no cache, or one of another format; or a checkpoint cannot be written.
    """
    # Refs and checkpoints first: those made from here on may name commits made from here on.
    damaged: list[Damage] = []
    refs = _read_refs(layout, damaged)
    checkpoints = CheckpointVerification(layout, rebuild=rebuild_checkpoints, on_note=on_note)
    numbers = CommitLog(layout).numbers()
    damaged.extend(_verify_format(layout, has_commits=bool(numbers)))
    log = verify_log(layout, numbers, on_block=checkpoints.verify, damaged=damaged)
    checkpoints.verify_others(log.end)
    damaged.extend(checkpoints.damaged)
    recipes = _read_recipes(layout, log, damaged)
    damaged.extend(_verify_recipes_of_rows(layout, log, recipes))
    damaged.extend(_verify_refs(layout, refs, log, recipes))
    if numbers and not layout.storage.exists(layout.ref("current")):
        on_note(
            "refs/current is not there: no ingest has completed yet, or it was removed; the last "
            "ingest or refresh, run again, writes it"
        )
    for commit in {log.end, *(ref.commit for ref in refs.values() if ref.commit <= log.end)}:
        damaged.extend(_verify_identities(layout, log, log.living(commit)))
    needed = _needed_shards(log, refs.values(), recipes)
    damaged.extend(verify_shards(layout, log, needed=needed, on_shard=on_shard))
    return in_order(damaged)


def _verify_format(layout: CacheLayout, *, has_commits: bool) -> Iterator[Damage]:
    try:
        check_format(layout)
    except DamagedError as error:
        yield damage_of(error)
    except CacheError:
        if not has_commits or layout.storage.exists(FORMAT_FILE):
            raise
        yield Damage(path=FORMAT_FILE, problem="the format file is missing, though commits are not")


def _read_refs(layout: CacheLayout, damaged: list[Damage]) -> dict[str, Ref]:
    refs: dict[str, Ref] = {}
    for name in ref_names(layout):
        try:
            ref = read_ref(layout, name)
        except DamagedError as error:
            damaged.append(damage_of(error))
        else:
            if ref is not None:  # deleted meanwhile
                refs[name] = ref
    return refs


def _read_recipes(
    layout: CacheLayout, log: VerifiedLog, damaged: list[Damage]
) -> dict[str, Recipe | None]:
    """By digest the recipes that rows name or that are there; None: damaged."""
    with reading_from(layout.url):
        names = [file.name for file in layout.storage.list("recipes")]
    stored = {found[1] for found in map(_RECIPE_FILE.fullmatch, names) if found}
    recipes: dict[str, Recipe | None] = {}
    for digest in sorted(stored.union(pc.unique(log.index["recipe"]).to_pylist())):
        try:
            recipes[digest] = read_recipe(layout, digest)
        except DamagedError as error:
            recipes[digest] = None
            damaged.append(damage_of(error))
    return recipes


def _verify_recipes_of_rows(
    layout: CacheLayout, log: VerifiedLog, recipes: Mapping[str, Recipe | None]
) -> Iterator[Damage]:
    """Rows whose field is another than their recipe's; the first of each commit."""
    keys = ["field", "recipe", "commit"]
    pairs = log.index.group_by(keys, use_threads=False).aggregate([]).to_pylist()
    for pair in pairs:
        recipe = recipes[pair["recipe"]]
        if recipe is not None and recipe.field != pair["field"]:
            is_it = reduce(pc.and_, (pc.equal(log.index[key], pair[key]) for key in keys))
            yield Damage(
                path=_latents_file(layout, log, pair["commit"]),
                clip=log.index.filter(is_it)["clip"][0].as_py(),
                field=pair["field"],
                problem=f"its recipe {recipe.digest[:12]} is one of {recipe.field}, not of "
                f"{pair['field']}",
            )


def _verify_refs(
    layout: CacheLayout,
    refs: Mapping[str, Ref],
    log: VerifiedLog,
    recipes: Mapping[str, Recipe | None],
) -> Iterator[Damage]:
    first = log.index.group_by("recipe", use_threads=False).aggregate([("commit", "min")])
    columns = (first["recipe"].to_pylist(), first["commit_min"].to_pylist())
    first_made: dict[str, int] = dict(zip(*columns, strict=True))
    for name, ref in refs.items():
        path = layout.ref(name)
        if not -1 <= ref.commit <= log.end:
            yield Damage(path=path, problem=f"names commit {ref.commit}; the log ends at {log.end}")
            continue
        is_known = all(number > ref.commit for number in log.unread["latents"])
        for field, digest in sorted(ref.recipes.items()):
            recipe, named = recipes.get(digest), f"names the recipe {digest[:12]} for {field}"
            if digest not in recipes:
                yield Damage(path=path, problem=f"{named}, which is missing")
            elif recipe is not None and recipe.field != field:
                yield Damage(path=path, problem=f"{named}; it is one of {recipe.field}")
            elif first_made.get(digest, ref.commit + 1) > ref.commit and is_known:
                problem = f"{named}; no row up to commit {ref.commit} is made by it"
                yield Damage(path=path, problem=problem)


def _needed_shards(
    log: VerifiedLog, refs: Iterable[Ref], recipes: Mapping[str, Recipe | None]
) -> set[str]:
    """Those of all latents alive at the head, and of those alive that each ref names."""
    needed = set(pc.unique(log.living(log.end)["shard"]).to_pylist())
    for ref in refs:
        found = [recipe for digest in ref.recipes.values() if (recipe := recipes.get(digest))]
        reached = [one.digest for recipe in found for one in recipe.with_ancestors()]
        rows = log.living(ref.commit)
        is_reached = pc.is_in(
            rows["recipe"].cast(pa.string()), value_set=pa.array(reached, pa.string())
        )
        needed.update(pc.unique(rows.filter(is_reached)["shard"]).to_pylist())
    return needed


def _verify_identities(layout: CacheLayout, log: VerifiedLog, rows: pa.Table) -> Iterator[Damage]:
    """Clips that are alive twice by one recipe."""
    clips, recipes = (rows[key].combine_chunks().indices.to_numpy() for key in ("clip", "recipe"))
    identities = clips.astype(np.int64) * (recipes.max(initial=0) + 1) + recipes
    _, places, counts = np.unique(identities, return_inverse=True, return_counts=True)
    commits: dict[tuple[str, str, str], list[int]] = {}
    for row in rows.filter(pa.array(counts[places] > 1)).to_pylist():
        commits.setdefault((row["clip"], row["field"], row["recipe"]), []).append(row["commit"])
    for (clip, field, recipe), found in commits.items():
        yield Damage(
            path=_latents_file(layout, log, found[-1]),
            clip=clip,
            field=field,
            problem=f"{field} of clip {clip} by recipe {recipe[:12]} is there more than once, in "
            f"commits {', '.join(map(str, found))}",
        )


def _latents_file(layout: CacheLayout, log: VerifiedLog, commit: int) -> str:
    return layout.rows(log.commits[commit].files["latents"].sha256)
