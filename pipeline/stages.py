"""What the stages give, and all of them for one task: decode, then encode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from latents.errors import ClipError
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.encoded import EncodedClip
from pipeline.job import ClipProducer, ClipTensors, SourceUnread, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRejected:
    """A clip or a whole source (segment None) that is given up."""

    task: Task
    segment: int | None
    stage: str
    error: ClipError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFinished:
    """All segments of a source have been encoded or rejected."""

    task: Task
    num_segments: int


StageEvent = EncodedClip | ClipRejected | SourceFinished


def work_on(
    task: Task, producer: ClipProducer, encode: Callable[[ClipTensors], EncodedClip]
) -> Iterator[StageEvent]:
    """All stages for one task, in order: what an engine in process does."""
    for event in producer.produce(task):
        if isinstance(event, SegmentRejected):
            yield ClipRejected(task=task, segment=event.segment, stage="decode", error=event.error)
        elif isinstance(event, SourceUnread):
            yield ClipRejected(task=task, segment=None, stage="read", error=event.error)
        elif isinstance(event, SourceDecoded):
            yield SourceFinished(task=task, num_segments=event.num_segments)
        else:
            try:
                yield encode(event)
            except ClipError as error:
                yield ClipRejected(task=task, segment=event.segment, stage="encode", error=error)
