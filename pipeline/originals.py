"""Clips as they were before encoding: from the clip level, or from their sources once more."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.snapshot import Snapshot
from latents.clip import Clip
from pipeline.decode import SegmentRejected
from pipeline.ingest import known_files
from pipeline.job import (
    CachedClipTask,
    ClipTensors,
    DecodeClips,
    ProducerEvent,
    ReadCachedClips,
    SourceUnread,
    whole_clip,
)
from pipeline.recorded import Recorded
from pipeline.settings import IngestSettings
from pipeline.source_hashing import hash_sources
from pipeline.source_rows import source_task
from pipeline.sources import HashedSource, source_of_uri


@dataclass(frozen=True, kw_only=True, slots=True)
class Unavailable:
    """Why a clip cannot be had as it was."""

    reason: str


class Originals:
    """Finds clips as they were before encoding. Used by one thread; to be closed.

    Args:
        layout: The cache.
        snapshot: Its rows.
        recorded: The settings its ``kl`` level was made with.
    """

    def __init__(self, layout: CacheLayout, snapshot: Snapshot, recorded: Recorded) -> None:
        self._kept = CachedLevel(layout, snapshot, level="clip", recipes=recorded.clip_recipes)
        self._reader = ReadCachedClips(layout)
        self._sources = SourceClips(snapshot, recorded.decoding)

    def name(self, clip: CachedClip) -> str:
        """URI of the clip's source; its digest where no source of these bytes is on record."""
        return self._sources.name(next(iter(clip.rows.values())).source)

    def find(self, clip: CachedClip) -> Clip | Unavailable:
        """The clip's pictures and sound, or why they are not to be had."""
        row = next(iter(clip.rows.values()))
        kept = self._kept.clips.find(clip.clip)
        if kept is None:
            return self._sources.find(row.source, row.segment)
        task = CachedClipTask(uri=self.name(clip), digest=row.source, clip=kept, fields=())
        return whole_clip(cast(ClipTensors, next(self._reader.produce(task))))

    def close(self) -> None:
        """Ends the decoding process."""
        self._sources.close()


class SourceClips:
    """Decodes clips from their sources once more. Used by one thread; to be closed.

    Args:
        snapshot: Says which sources have which bytes.
        decoding: Settings that decode a source into the same clips.
    """

    def __init__(self, snapshot: Snapshot, decoding: IngestSettings) -> None:
        self._snapshot = snapshot
        self._decoder = DecodeClips(decoding)

    def name(self, digest: str) -> str:
        """URI of a source with these bytes; the digest where none is on record."""
        return next(iter(self._uris(digest)), digest)

    def find(self, digest: str, segment: int) -> Clip | Unavailable:
        """A segment of the source with these bytes, or why it is not to be had."""
        source = self._source(digest)
        return source if isinstance(source, Unavailable) else self._decode(source, segment)

    def close(self) -> None:
        """Ends the decoding process."""
        self._decoder.close()

    def _uris(self, digest: str) -> list[str]:
        rows = self._snapshot.sources
        uris: list[str] = rows.filter(pc.equal(rows["digest"], digest))["uri"].to_pylist()
        return uris

    def _source(self, digest: str) -> HashedSource | Unavailable:
        uris = self._uris(digest)
        for uri in uris:
            source = source_of_uri(uri)
            known = known_files(self._snapshot, [source])
            (found,) = hash_sources([source], known, num_threads=1)
            if isinstance(found, HashedSource) and found.digest == digest:
                return found
        if any(Path(uri).exists() for uri in uris):
            return Unavailable(reason="the source has changed since it was ingested")
        return Unavailable(reason="the source is gone")

    def _decode(self, found: HashedSource, segment: int) -> Clip | Unavailable:
        task = source_task(found, skip_segments=frozenset(range(segment)), fields=())
        events = cast(Generator[ProducerEvent, None, None], self._decoder.produce(task))
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, ClipTensors) and event.segment == segment:
                    return whole_clip(event)
                if isinstance(event, SourceUnread):
                    return Unavailable(reason=event.error.reason)
                if isinstance(event, SegmentRejected) and event.segment in (None, segment):
                    return Unavailable(reason=f"it can no longer be decoded: {event.error.reason}")
        return Unavailable(reason=f"the source no longer has a segment {segment}")
