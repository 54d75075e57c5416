"""Taking content down: its latents leave, and it is not ingested again until it is readmitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.commit import Commit, read_rows
from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, move_ref, read_ref
from latents.cache.rows import LatentRow, TombstoneRow, latent_row, row_schema, rows_to_table
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.cache.source_names import digest_of, unknown_name, uris_of
from latents.errors import CacheError

CurrentRef = Literal["moved", "stays", "absent"]
"""What became of ``refs/current``: it names the new commit; or, as work that was not completed
lies between, still the old one; or there is none."""

_QUIET_KINDS = {"tombstones", "quarantine", "annotations"}
_QUIET_REASONS = {"dropped", "readmitted"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What was taken down, or readmitted."""

    commit: int
    sources: tuple[str, ...]
    """Digests of whole sources."""
    uris: tuple[str, ...]
    """Every name under which their bytes are, or were, on record."""
    clips: tuple[str, ...]
    """Clips that were named one by one."""
    num_clips: int
    """Clips whose latents left, all together; 0 for what was readmitted."""
    current: CurrentRef


def drop(layout: CacheLayout, names: Sequence[str], *, run: Mapping[str, str]) -> Dropped:
    """Takes sources or single clips down: their latents and the names of their bytes leave.

    It is the content that goes: every URI with the same bytes leaves too. The bytes of the
    latents stay in their shards until these are rewritten (`latents.cache.compact`).

    Args:
        layout: The cache.
        names: Of each its URI, a path to its file, a digest or the beginning of one, or the key
            of a clip.
        run: Recorded with the commit.

    Raises:
        CacheError: A name is unknown or ambiguous; nothing was dropped then.
    """
    with driving(layout, purpose="drop"):
        snapshot = load_snapshot(layout)
        sources, clips = _resolve(layout, snapshot, names)
        rows = [row for digest in sources for row in _tombstones(snapshot, digest)]
        rows += [
            TombstoneRow(
                reason="dropped",
                uri=None,
                source=digest,
                clip=clip,
                stop_frame=_stop_frame(snapshot, clip),
            )
            for clip, digest in clips.items()
        ]
        commit = _append(layout, snapshot, rows, run)
        return Dropped(
            commit=commit.number,
            sources=tuple(sources),
            uris=tuple(row.uri for row in rows if row.uri is not None),
            clips=tuple(clips),
            num_clips=_num_clips(snapshot, sources, clips),
            current=_take_current_along(layout, commit.number),
        )


def readmit(layout: CacheLayout, names: Sequence[str], *, run: Mapping[str, str]) -> Dropped:
    """Revokes `drop`: the next ingest may make the latents anew. Nothing comes back by itself.

    Args:
        layout: The cache.
        names: As for `drop`, of what was dropped.
        run: Recorded with the commit.

    Raises:
        CacheError: A name is not of something that was dropped; nothing was readmitted then.
    """
    with driving(layout, purpose="readmit"):
        snapshot = load_snapshot(layout)
        gone = _Gone(snapshot)
        sources: dict[str, None] = {}
        clips: dict[str, str] = {}
        for name in names:
            if name in gone.clips:
                clips[name] = gone.clips[name]
            elif digest := gone.source(name):
                sources[digest] = None
            else:
                raise unknown_name(f"{layout.url}, dropped", name, gone.names())
        rows = [
            TombstoneRow(reason="readmitted", uri=None, source=digest, clip=clip)
            for clip, digest in (*((None, digest) for digest in sources), *clips.items())
        ]
        commit = _append(layout, snapshot, rows, run)
        return Dropped(
            commit=commit.number,
            sources=tuple(sources),
            uris=tuple(uri for uri, digest in gone.uris.items() if digest in sources),
            clips=tuple(clips),
            num_clips=0,
            current=_take_current_along(layout, commit.number),
        )


def dropped_digests(snapshot: Snapshot) -> set[str]:
    """Digests of the sources that were taken down and not readmitted."""
    return {source for clip, source in _dropped(snapshot) if clip is None}


def dropped_clips(snapshot: Snapshot) -> dict[str, int]:
    """The clips that were taken down one by one and not readmitted, with their stop frames."""
    return {clip: row["stop_frame"] or 0 for (clip, _), row in _dropped(snapshot).items() if clip}


def readmitted_sources(snapshot: Snapshot) -> dict[str, int]:
    """Digests of the sources that were readmitted, whole or in clips, and in which commit last."""
    rows = (row for row in _words(snapshot) if row["reason"] == "readmitted")
    return {row["source"]: row["commit"] for row in rows}


def _dropped(snapshot: Snapshot) -> dict[tuple[str | None, str], dict[str, Any]]:
    """Clip (None: the whole source) and source of what is down; the last word counts."""
    words = {(row["clip"], row["source"]): row for row in _words(snapshot)}
    return {key: row for key, row in words.items() if row["reason"] == "dropped"}


def _words(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Tombstones by which something was taken down or readmitted, in order of their commits."""
    rows = snapshot.tombstones
    is_word = pc.is_in(rows["reason"], value_set=pa.array(sorted(_QUIET_REASONS)))
    found: list[dict[str, Any]] = rows.filter(is_word).to_pylist()
    return found


class _Gone:
    """What was dropped and not readmitted, by all its names."""

    def __init__(self, snapshot: Snapshot) -> None:
        gone = _dropped(snapshot)
        self.clips = {clip: source for clip, source in gone if clip is not None}
        self._sources = sorted(source for clip, source in gone if clip is None)
        self.uris = {
            row["uri"]: row["source"]
            for row in _words(snapshot)
            if row["uri"] is not None and (None, row["source"]) in gone
        }

    def source(self, name: str) -> str | None:
        """The digest of a source, by whatever name."""
        found = (self.uris[uri] for uri in uris_of(name) if uri in self.uris)
        return next(found, None) or digest_of(name, pa.array(self._sources, pa.string()))

    def names(self) -> list[str]:
        """All there are."""
        return [*self.uris, *self._sources, *self.clips]


def _resolve(
    layout: CacheLayout, snapshot: Snapshot, names: Sequence[str]
) -> tuple[dict[str, None], dict[str, str]]:
    """The digests of the sources that names mean, and the clips with their sources."""
    record = snapshot.sources
    known = pc.unique(
        pa.chunked_array(
            [*record["digest"].chunks, *snapshot.index["source"].cast(pa.string()).chunks],
            pa.string(),
        )
    )
    sources: dict[str, None] = {}
    clips: dict[str, str] = {}
    for name in names:
        uris = pa.array(uris_of(name), pa.string())
        named = record.filter(pc.is_in(record["uri"], value_set=uris))
        of_clip = snapshot.index.filter(pc.equal(snapshot.index["clip"], name))
        if named.num_rows:
            sources |= dict.fromkeys(named["digest"].to_pylist())
        elif of_clip.num_rows:
            clips[name] = of_clip["source"][0].as_py()
        elif digest := digest_of(name, known):
            sources[digest] = None
        elif name in (gone := _Gone(snapshot)).clips or gone.source(name):
            raise CacheError(f"{layout.url}: {name} was dropped before; nothing was done now")
        else:
            raise unknown_name(layout.url, name, [*record["uri"].to_pylist(), *known.to_pylist()])
    return sources, clips


def _tombstones(snapshot: Snapshot, digest: str) -> list[TombstoneRow]:
    """What ends a source, under every name that it has."""
    record = snapshot.sources
    uris = record.filter(pc.equal(record["digest"], digest))["uri"].to_pylist()
    return [
        TombstoneRow(reason="dropped", uri=uri, source=digest, clip=None) for uri in uris or [None]
    ]


def _stop_frame(snapshot: Snapshot, clip: str) -> int:
    """The frame of its source before which a clip ends, at the clip's rate."""
    of_clip = snapshot.index.filter(pc.equal(snapshot.index["clip"], clip))
    commits = np.unique(of_clip["commit"].to_numpy())
    stops = [0]
    for file in snapshot.latents_files:
        if file.has_any(commits):
            rows = file.read()
            found = rows.filter(pc.equal(rows["clip"], clip)).select(row_schema("latents").names)
            stops += [_last_frame_of(latent_row(row)) for row in found.to_pylist()]
    return max(stops)


def _last_frame_of(row: LatentRow) -> int:
    if row.field in ("clip.video", "kl.video"):
        return row.start_frame + row.shape[0]
    if row.num_windows:
        first, stride, frames = row.window_first_frame, row.window_stride, row.window_frames
        return (
            row.start_frame + (first or 0) + (row.num_windows - 1) * (stride or 0) + (frames or 0)
        )
    return row.start_frame + (row.sound_stop_frame or 0)


def _num_clips(snapshot: Snapshot, sources: Mapping[str, None], clips: Mapping[str, str]) -> int:
    index = snapshot.index
    leaves = pc.or_(
        pc.is_in(index["source"], value_set=pa.array(list(sources), pa.string())),
        pc.is_in(index["clip"], value_set=pa.array(list(clips), pa.string())),
    )
    return len(pc.unique(index.filter(leaves)["clip"].cast(pa.string())))


def _append(
    layout: CacheLayout, snapshot: Snapshot, rows: Sequence[TombstoneRow], run: Mapping[str, str]
) -> Commit:
    log = CommitLog(layout, seen=snapshot.commit)
    commit = log.append({"tombstones": rows_to_table("tombstones", rows)}, run)
    assert commit is not None
    return commit


def _take_current_along(layout: CacheLayout, commit: int) -> CurrentRef:
    """Moves ``refs/current`` to a commit, where nothing but drops lies between."""
    current = read_ref(layout, "current")
    if current is None:
        return "absent"
    if current.commit >= commit:  # another driver was faster
        return "moved"
    between = CommitLog(layout).commits(current.commit + 1, commit)
    if not all(_is_quiet(layout, one) for one in between):
        return "stays"

    def change(found: Ref | None) -> Ref | None:
        return Ref(commit=commit, recipes=current.recipes) if found == current else None

    move_ref(layout, "current", change)
    found = read_ref(layout, "current")
    return "moved" if found is not None and found.commit >= commit else "stays"


def _is_quiet(layout: CacheLayout, commit: Commit) -> bool:
    """Whether a commit adds no latents, and ends only what was taken down."""
    if not set(commit.files) <= _QUIET_KINDS:
        return False
    if "tombstones" not in commit.files:
        return True
    rows = read_rows(layout, "tombstones", commit.files["tombstones"])
    return set(rows["reason"].to_pylist()) <= _QUIET_REASONS
