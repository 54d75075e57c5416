"""Clips as they were before encoding: from the clip level, or from their sources once more."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedClip, CachedLevel
from latents.cache.snapshot import Snapshot
from latents.clip import Clip
from pipeline.decode import DecodeEvent, SegmentRejected
from pipeline.job import CachedClipTask, DecodeClips, ReadCachedClips
from pipeline.plan import known_files, source_task
from pipeline.recorded import Recorded
from pipeline.scene_clips import SceneRef
from pipeline.sources import HashedSource, Source, hash_sources


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
        kept = CachedLevel(layout, snapshot, level="clip", recipes=recorded.clip_recipes)
        self._kept = {clip.clip: clip for clip in kept}
        self._known = known_files(snapshot)
        self._uris: dict[str, list[str]] = {}
        for row in snapshot.sources.to_pylist():
            self._uris.setdefault(row["digest"], []).append(row["uri"])
        self._reader = ReadCachedClips(layout)
        self._decoder = DecodeClips(recorded.decoding)

    def name(self, clip: CachedClip) -> str:
        """URI of the clip's source; its digest where no source of these bytes is on record."""
        digest = next(iter(clip.rows.values())).source
        return self._uris.get(digest, [digest])[0]

    def find(self, clip: CachedClip) -> Clip | Unavailable:
        """The clip's pictures and sound, or why they are not to be had."""
        row = clip.rows["kl.video"]
        if clip.clip in self._kept:
            task = CachedClipTask(
                uri=self.name(clip), digest=row.source, clip=self._kept[clip.clip]
            )
            return cast(Clip, next(self._reader.produce(task)))
        source = self._source(row.source)
        return source if isinstance(source, Unavailable) else self._decode(source, row.segment)

    def close(self) -> None:
        """Ends the decoding process."""
        self._decoder.close()

    def _source(self, digest: str) -> HashedSource | Unavailable:
        """A source that still has these bytes."""
        uris = self._uris.get(digest, [])
        for uri in uris:
            (found,) = hash_sources([source_of_uri(uri)], self._known, num_threads=1)
            if isinstance(found, HashedSource) and found.digest == digest:
                return found
        if any(Path(uri).exists() for uri in uris):
            return Unavailable(reason="the source has changed since it was ingested")
        return Unavailable(reason="the source is gone")

    def _decode(self, found: HashedSource, segment: int) -> Clip | Unavailable:
        task = source_task(found, frozenset(range(segment)))
        events = cast(Generator[DecodeEvent, None, None], self._decoder.produce(task))
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, Clip) and event.segment == segment:
                    return event
                if isinstance(event, SegmentRejected) and event.segment in (None, segment):
                    return Unavailable(reason=f"it can no longer be decoded: {event.error.reason}")
        return Unavailable(reason=f"the source no longer has a segment {segment}")


def source_of_uri(uri: str) -> Source:
    """The source that a row of the log names."""
    if uri.startswith("scenes:"):
        seed, index, seconds = (int(part) for part in uri.split(":")[1:])
        return Source(uri=uri, path=None, scene=SceneRef(seed=seed, index=index, seconds=seconds))
    return Source(uri=uri, path=Path(uri), scene=None)
