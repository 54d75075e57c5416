"""Why a clip's latents are what they are: the chain from source to field, and what differs now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.reader import ClipRows
from latents.cache.refs import read_recipe, read_ref, ref_names
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.cache.source_names import digest_of, unknown_name, uris_of
from latents.fields import FIELDS
from latents.recipe import Canonical, Recipe, recipe_differences


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeLink:
    """One recipe in the chain behind a field."""

    field: str
    recipe: str
    implementation: int
    specification: Mapping[str, Canonical]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldOrigin:
    """Where one field of one clip comes from."""

    field: str
    digest: str
    """SHA-256 of the tensor."""
    shard: str
    offset: int
    shape: tuple[int, ...]
    commit: int
    device: str
    versions: str
    chain: tuple[RecipeLink, ...]
    """From the source on, this field's own recipe last."""
    refs: tuple[str, ...]
    """Refs that name this recipe."""
    differences: tuple[str, ...] | None
    """Parts in which it differs from the settings asked about; None where those have no such
    field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOrigin:
    """Where one clip comes from."""

    clip: str
    segment: int
    fields: tuple[FieldOrigin, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Answers `mmldm cache why`."""

    source_digest: str
    uris: tuple[str, ...]
    annotation: Mapping[str, str | None] | None
    clips: tuple[ClipOrigin, ...]
    left: tuple[str, ...]
    """Tombstones: what left, and why."""
    quarantine: tuple[str, ...]
    """What happened to it before it was, or was not, encoded."""


def explain(
    layout: CacheLayout, name: str, *, wanted: Mapping[str, Recipe] | None = None
) -> Origin:
    """The chain of digests behind a clip or all clips of a source.

    Args:
        layout: The cache.
        name: A clip's key, a source's URI, or its digest (or the beginning of it).
        wanted: Recipes to compare with, by field.

    Raises:
        CacheError: The cache knows nothing of that name.
        DamagedError: A recipe or row is damaged.
    """
    snapshot = load_snapshot(layout)
    digest = _find_source(layout, snapshot, name)
    index = snapshot.index
    of_source = index.filter(pc.equal(index["source"].cast(pa.string()), digest))
    clips = sorted(set(of_source["clip"].to_pylist()))
    if name in clips:
        clips = [name]
    recipes = sorted(set(of_source["recipe"].to_pylist()))
    rows = {recipe: ClipRows({"": snapshot.rows_of(recipe)}) for recipe in recipes}
    named_by = _refs_by_recipe(layout)
    return Origin(
        source_digest=digest,
        uris=tuple(_uris(snapshot, digest)),
        annotation=_annotation(snapshot, digest),
        clips=tuple(
            _clip_origin(layout, key, rows, of_source, named_by, wanted or {}) for key in clips
        ),
        left=tuple(_tombstones(snapshot, digest)),
        quarantine=tuple(_events(snapshot, digest)),
    )


def _find_source(layout: CacheLayout, snapshot: Snapshot, name: str) -> str:
    """Digest of the source that a name means, of one that left too."""
    history, index = snapshot.source_history, snapshot.index
    uris = pa.array(uris_of(name), pa.string())
    named: list[str] = history.filter(pc.is_in(history["uri"], value_set=uris))[
        "digest"
    ].to_pylist()
    if named:
        return named[-1]
    of_clip = index.filter(pc.equal(index["clip"], name))
    if of_clip.num_rows:
        return str(of_clip["source"][0].as_py())
    known = pc.unique(
        pa.chunked_array(
            [*history["digest"].chunks, *index["source"].cast(pa.string()).chunks], pa.string()
        )
    )
    digest = digest_of(name, known)
    if digest is None:
        raise unknown_name(layout.url, name, [*history["uri"].to_pylist(), *known.to_pylist()])
    return digest


def _uris(snapshot: Snapshot, digest: str) -> list[str]:
    rows = snapshot.sources
    uris: list[str] = rows.filter(pc.equal(rows["digest"], digest))["uri"].to_pylist()
    return uris


def _annotation(snapshot: Snapshot, digest: str) -> dict[str, str | None] | None:
    rows = snapshot.annotations
    found = rows.filter(pc.equal(rows["source"], digest)).to_pylist()
    keys = ("label", "caption", "split")
    return {key: found[0][key] for key in keys} if found else None


def _clip_origin(
    layout: CacheLayout,
    clip: str,
    rows: Mapping[str, ClipRows],
    index: pa.Table,
    named_by: Mapping[str, tuple[str, ...]],
    wanted: Mapping[str, Recipe],
) -> ClipOrigin:
    commits = index.filter(pc.equal(index["clip"].cast(pa.string()), clip))
    commit_of = dict(zip(commits["recipe"].to_pylist(), commits["commit"].to_pylist(), strict=True))
    found = [one.rows[""] for table in rows.values() if (one := table.find(clip)) is not None]
    order = list(FIELDS)
    found.sort(key=lambda row: (order.index(row.field), row.recipe))
    fields = []
    for row in found:
        recipe = read_recipe(layout, row.recipe)
        fields.append(
            FieldOrigin(
                field=row.field,
                digest=row.digest,
                shard=row.shard,
                offset=row.offset,
                shape=tuple(row.shape),
                commit=commit_of[row.recipe],
                device=row.device,
                versions=row.versions,
                chain=tuple(_links(recipe)),
                refs=named_by.get(row.recipe, ()),
                differences=(
                    recipe_differences(recipe, wanted[row.field]) if row.field in wanted else None
                ),
            )
        )
    return ClipOrigin(clip=clip, segment=found[0].segment, fields=tuple(fields))


def _links(recipe: Recipe) -> Iterator[RecipeLink]:
    for part in {part.digest: part for part in recipe.with_ancestors()}.values():
        yield RecipeLink(
            field=part.field,
            recipe=part.digest,
            implementation=part.implementation,
            specification=part.specification,
        )


def _refs_by_recipe(layout: CacheLayout) -> dict[str, tuple[str, ...]]:
    named: dict[str, tuple[str, ...]] = {}
    for name in ref_names(layout):
        ref = read_ref(layout, name)
        for digest in ref.recipes.values() if ref else ():
            named[digest] = (*named.get(digest, ()), name)
    return named


def _tombstones(snapshot: Snapshot, digest: str) -> Iterator[str]:
    rows = snapshot.tombstones
    for row in rows.filter(pc.equal(rows["source"], digest)).to_pylist():
        what = f"clip {row['clip']}" if row["clip"] else "all clips"
        yield f"commit {row['commit']}: {what} {row['reason']}"


def _events(snapshot: Snapshot, digest: str) -> Iterator[str]:
    rows = snapshot.quarantine
    events: Sequence[dict[str, Any]] = rows.filter(
        pc.equal(rows["source_digest"], digest)
    ).to_pylist()
    for row in events:
        segment = "the source" if row["segment"] is None else f"segment {row['segment']}"
        cause = f": {row['error_class']}: {row['message']}" if row["event"] == "rejected" else ""
        yield f"commit {row['commit']}: {segment} {row['event']} in {row['stage']}{cause}"
