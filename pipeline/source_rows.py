"""What the log records of a source, and the task of decoding it."""

from __future__ import annotations

from collections.abc import Sequence

from latents.cache.rows import AnnotationRow, SourceRow
from latents.cache.snapshot import Snapshot
from pipeline.decode import SourceTask
from pipeline.sources import HashedSource


def source_row(hashed: HashedSource, segmentation: str, num_segments: int) -> SourceRow:
    """The record of a source whose length is known."""
    return SourceRow(
        uri=hashed.source.uri,
        size=hashed.size,
        mtime_ns=hashed.mtime_ns,
        etag=hashed.etag,
        digest=hashed.digest,
        segmentation=segmentation,
        num_segments=num_segments,
    )


def source_task(
    hashed: HashedSource, *, skip_segments: frozenset[int], fields: tuple[str, ...]
) -> SourceTask:
    """The task of decoding a source, less some of its segments."""
    source = hashed.source
    return SourceTask(
        uri=source.uri,
        path=None if source.scene is not None else str(source.path or source.place),
        scene=source.scene,
        digest=hashed.digest,
        size=hashed.size,
        mtime_ns=hashed.mtime_ns,
        skip_segments=skip_segments,
        fields=fields,
        span=source.span,
    )


def annotation_rows(
    sources: Sequence[HashedSource], snapshot: Snapshot
) -> tuple[AnnotationRow, ...]:
    """What is said of the sources and is not on record yet."""
    wanted = {
        source.digest: AnnotationRow(
            source=source.digest,
            label=source.source.annotation.label,
            caption=source.source.annotation.caption,
            split=source.source.annotation.split,
        )
        for source in sources
        if source.source.annotation is not None
    }
    if not wanted:
        return ()
    columns = ("source", "label", "caption", "split")
    on_record = {AnnotationRow(**row) for row in snapshot.annotations.select(columns).to_pylist()}
    return tuple(row for row in wanted.values() if row not in on_record)
