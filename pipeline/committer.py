"""The committer: collects what the stages made, seals it into shards and commits it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.rows import (
    AnnotationRow,
    LatentRow,
    QuarantineRow,
    Row,
    RowKind,
    SourceRow,
    TombstoneRow,
    rows_to_table,
)
from latents.fields import FIELDS, Level
from latents.recipe import Recipe
from latents.store.protocol import ShardWriter, StoredTensor
from pipeline.encoded import EncodedClip


class Committer:
    """The one writer of a driver.

    Nothing added is in the cache before `flush`; everything is after it, or nothing of it.

    Args:
        layout: The cache.
        recipes: Recipe of each field that will be added.
        seen: The commit up to which ``present`` speaks.
        present: ``(recipe, clip)`` pairs already in the cache; they are dropped.
        open_shard: Starts a shard.
        shard_bytes: A shard this large is sealed and committed.
        commit_seconds: Longest time between two commits while things are added.
        versions: Library versions recorded with each latent.
        tolerances: Of each level, how far encoding again may come out from what is stored.
        run: Recorded with each commit.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        layout: CacheLayout,
        *,
        recipes: Mapping[str, Recipe],
        seen: int,
        present: set[tuple[str, str]],
        open_shard: Callable[[], ShardWriter],
        shard_bytes: int,
        commit_seconds: float,
        versions: str,
        tolerances: Mapping[Level, float],
        run: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = CommitLog(layout, seen=seen)
        self._recipes = dict(recipes)
        self._present = present
        self._open_shard = open_shard
        self._shard_bytes = shard_bytes
        self._commit_seconds = commit_seconds
        self._versions = versions
        self._tolerances = dict(tolerances)
        self._run = dict(run)
        self._clock = clock
        self._shards: dict[Level, ShardWriter] = {}
        self._clips: list[tuple[EncodedClip, tuple[str, ...]]] = []
        self._others: dict[RowKind, list[Row]] = defaultdict(list)
        self._last_flush = clock()

    def add_clip(self, encoded: EncodedClip) -> bool:
        """Takes the tensors of one clip, less those already in the cache; whether any is new."""
        clip = str(encoded.key)
        by_level: dict[Level, dict[str, Any]] = defaultdict(dict)
        for field, tensor in encoded.tensors.items():
            pair = (self._recipes[field].digest, clip)
            if pair not in self._present:
                self._present.add(pair)
                by_level[FIELDS[field].level][field] = tensor
        for level, tensors in by_level.items():
            if level not in self._shards:
                self._shards[level] = self._open_shard()
            self._shards[level].add(clip, tensors)
        added = tuple(field for tensors in by_level.values() for field in tensors)
        if not added:
            return False
        # The tensors are in the shard now and need not wait in memory for their rows.
        self._clips.append((replace(encoded, tensors={}), added))
        self.flush_if_due()
        return True

    def add_source(self, row: SourceRow) -> None:
        """Notes a source; after all its clips were added."""
        self._add("sources", row)

    def add_quarantine(self, row: QuarantineRow) -> None:
        """Notes a clip or source that was given up."""
        self._add("quarantine", row)

    def add_annotation(self, row: AnnotationRow) -> None:
        """Notes what is said of a source."""
        self._add("annotations", row)

    def add_tombstone(self, row: TombstoneRow) -> None:
        """Notes something that leaves."""
        self._add("tombstones", row)

    def _add(self, kind: RowKind, row: Row) -> None:
        self._others[kind].append(row)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Commits when a shard is full or the time is up."""
        full = any(shard.num_bytes >= self._shard_bytes for shard in self._shards.values())
        if full or self._clock() - self._last_flush >= self._commit_seconds:
            self.flush()

    def flush(self) -> None:
        """Seals the shards and commits everything added so far."""
        stored: dict[tuple[str, str], StoredTensor] = {}
        for shard in self._shards.values():
            stored |= shard.seal()
        latents = [
            self._latent_row(encoded, field, stored[str(encoded.key), field])
            for encoded, added in self._clips
            for field in added
        ]
        tables: dict[RowKind, Any] = {"latents": rows_to_table("latents", latents)}
        for kind, rows in self._others.items():
            tables[kind] = rows_to_table(kind, rows)
        self._log.append(tables, self._run)
        self._forget()
        self._last_flush = self._clock()

    def discard(self) -> None:
        """Forgets what was added since the last commit; no partial shard remains."""
        for shard in self._shards.values():
            shard.discard()
        self._forget()

    def _forget(self) -> None:
        self._shards, self._clips = {}, []
        self._others.clear()

    def _latent_row(self, encoded: EncodedClip, field: str, tensor: StoredTensor) -> LatentRow:
        sums = encoded.channel_sums.get(field)
        grid = encoded.grid if FIELDS[field].has_row_per_window else None
        return LatentRow(
            clip=str(encoded.key),
            field=field,
            recipe=self._recipes[field].digest,
            source=encoded.key.source_digest,
            segment=encoded.segment,
            start_frame=encoded.key.start_frame,
            fps=encoded.key.fps,
            shard=tensor.shard,
            offset=tensor.offset,
            dtype=tensor.dtype,
            shape=list(tensor.shape),
            digest=tensor.digest,
            crc32c=list(tensor.crc32c),
            channel_count=sums.count if sums else None,
            mean_sum=list(sums.mean_sum) if sums else None,
            square_sum=list(sums.square_sum) if sums else None,
            window_frames=grid.frames if grid else None,
            window_stride=grid.stride if grid else None,
            window_first_frame=grid.first_frame if grid else None,
            num_windows=grid.num_windows if grid else None,
            sample_rate=encoded.sample_rate,
            loudness_dbfs=encoded.loudness_dbfs,
            sound_first_frame=encoded.sound_first_frame,
            sound_stop_frame=encoded.sound_stop_frame,
            device=encoded.device,
            versions=self._versions,
            encode_seconds=encoded.encode_seconds,
            tolerance=self._tolerances[FIELDS[field].level],
        )
