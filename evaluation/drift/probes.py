"""Which clips two refs are compared on, and whether their tensors can be set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.refs import Ref, read_recipe, require_ref
from latents.cache.rows import LatentRow, latent_row
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.fields import FIELDS
from latents.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRef:
    """A ref with the rows it pins."""

    name: str
    layout: CacheLayout
    pinned: Ref
    snapshot: Snapshot

    def clips(self) -> set[str]:
        """Keys of the clips that have any of its fields."""
        index = self.snapshot.index
        recipes = pa.array(sorted(self.pinned.recipes.values()), pa.string())
        rows = index.filter(pc.is_in(index["recipe"].cast(pa.string()), value_set=recipes))
        return set(pc.unique(rows["clip"].cast(pa.string())).to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedField:
    """A field as one ref has it: what made it, and its rows of the probe clips."""

    ref: OpenRef
    recipe: Recipe
    probes: tuple[LatentRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldPair:
    """A field as both refs have it. Their probes are the same clips, in the same order."""

    a: ProbedField
    b: ProbedField
    num_clips_in_both: int
    num_clips_only_a: int
    num_clips_only_b: int
    num_equal: int
    """Clips in both whose bytes are equal."""
    unmeasured: str | None
    """Why their tensors cannot be set side by side; None where they can."""


def open_refs(layout: CacheLayout, a: str, b: str) -> tuple[OpenRef, OpenRef]:
    """Two refs of a cache.

    Raises:
        CacheError: There is no ref of such a name.
        DamagedError: The log cannot be read.
    """
    pinned = require_ref(layout, a), require_ref(layout, b)
    snapshots = {commit: load_snapshot(layout, commit) for commit in {p.commit for p in pinned}}
    first, second = (
        OpenRef(name=name, layout=layout, pinned=ref, snapshot=snapshots[ref.commit])
        for name, ref in zip((a, b), pinned, strict=True)
    )
    return first, second


def pair_field(field: str, a: OpenRef, b: OpenRef, *, num_clips: int) -> FieldPair:
    """A field of both refs, with probes spread evenly over the keys of the clips both have.

    Raises:
        DamagedError: Rows or recipes are not what the log says.
    """
    all_a, all_b = (ref.snapshot.rows_of(ref.pinned.recipes[field]) for ref in (a, b))
    # Both are in order of clip, each clip once: what is left of them stands side by side.
    rows_a, rows_b = _only(all_a, all_b["clip"]), _only(all_b, all_a["clip"])
    chosen = evenly_spaced(rows_a.num_rows, num_clips)
    probed_a, probed_b = _probe(field, a, rows_a, chosen), _probe(field, b, rows_b, chosen)
    return FieldPair(
        a=probed_a,
        b=probed_b,
        num_clips_in_both=rows_a.num_rows,
        num_clips_only_a=all_a.num_rows - rows_a.num_rows,
        num_clips_only_b=all_b.num_rows - rows_b.num_rows,
        num_equal=pc.sum(pc.equal(rows_a["digest"], rows_b["digest"])).as_py() or 0,
        unmeasured=_why_unmeasured(field, probed_a.probes, probed_b.probes),
    )


def evenly_spaced(length: int, count: int) -> list[int]:
    """``count`` of the positions below ``length``, or all there are, spread evenly."""
    count = min(count, length)
    return [(2 * index + 1) * length // (2 * count) for index in range(count)]


def _only(rows: pa.Table, clips: pa.ChunkedArray) -> pa.Table:
    return rows.filter(pc.is_in(rows["clip"], value_set=clips))


def _probe(field: str, ref: OpenRef, rows: pa.Table, chosen: Sequence[int]) -> ProbedField:
    recipe = read_recipe(ref.layout, ref.pinned.recipes[field])
    records = rows.take(pa.array(chosen, pa.int64())).to_pylist()
    return ProbedField(ref=ref, recipe=recipe, probes=tuple(map(latent_row, records)))


def _why_unmeasured(field: str, a: Sequence[LatentRow], b: Sequence[LatentRow]) -> str | None:
    if not a:
        return "no clip of this field is in both"
    if FIELDS[field].tensor != "moments":
        return "a clip has no posterior; only its bytes are compared"
    for row_a, row_b in zip(a, b, strict=True):
        if _grid(row_a) != _grid(row_b):
            return f"the windows of clip {row_a.clip} differ: {_grid(row_a)}; {_grid(row_b)}"
        if row_a.shape != row_b.shape:
            shapes = f"{tuple(row_a.shape)}; {tuple(row_b.shape)}"
            return f"the shapes of clip {row_a.clip} differ: {shapes}"
    return None


def _grid(row: LatentRow) -> str:
    return (
        f"{row.num_windows} of {row.window_frames} frames, every {row.window_stride} from frame "
        f"{row.window_first_frame}"
    )
