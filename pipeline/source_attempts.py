"""How often a source is decoded again whose decoder died, and what is charged when that is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from latents.clip import Clip
from latents.errors import ClipError, WorkerDiedError
from pipeline.decode import Backend, DecodeEvent, SegmentRejected, SourceDecoded, SourceTask


class SourceAttempts:
    """Which segments of a source have come out, and whether what is left is tried again.

    A decoder that died is given the source again, less what has come out. Only as many deaths one
    after another as `max_attempts` while the *same* segment was running count against it; each
    segment that comes out in between begins the count anew. So a source of n segments is decoded
    ``max_attempts * (n + 1)`` times at most.

    Args:
        task: The source.
        backend: Decodes the pictures first. After a death of the decoder's own making PyAV does,
            for the rest of the source. A decoder that was killed from outside is tried again as it
            was.
        max_attempts: At least 1.
    """

    def __init__(self, task: SourceTask, *, backend: Backend, max_attempts: int) -> None:
        self._task = task
        self._backend: Backend = backend
        self._max_attempts = max_attempts
        self._has_come: set[int | None] = set(task.skip_segments)
        self._died_at: int | None = None
        self._num_deaths = 0

    @property
    def backend(self) -> Backend:
        """Decodes the pictures of the next attempt."""
        return self._backend

    @property
    def rest(self) -> SourceTask:
        """The source, less the segments that have come out."""
        come = frozenset(segment for segment in self._has_come if segment is not None)
        return replace(self._task, skip_segments=come)

    def is_new(self, event: DecodeEvent) -> bool:
        """Notes an event; whether it did not come out of an earlier attempt."""
        if not isinstance(event, Clip | SegmentRejected):
            return True
        is_new = event.segment not in self._has_come
        self._has_come.add(event.segment)
        return is_new

    def may_go_on(self, error: ClipError) -> bool:
        """Counts a death; whether the rest is to be tried again."""
        running = self._running
        self._num_deaths = self._num_deaths + 1 if running == self._died_at else 1
        self._died_at = running
        if self._num_deaths >= self._max_attempts:
            return False
        if not isinstance(error, WorkerDiedError):
            self._backend = "pyav"
        return True

    def give_up(self, error: ClipError) -> Iterator[DecodeEvent]:
        """Charges the segment that was running, or the source if nothing came of it, and ends."""
        segment = self._running or None
        reason = error.reason
        if self._num_deaths > 1:
            reason += f" ({self._num_deaths} attempts, the last with {self._backend})"
        if segment is not None:
            reason += f"; what lies behind segment {segment} could not be reached"
        yield SegmentRejected(segment=segment, error=type(error)(error.source, reason))
        yield SourceDecoded(num_segments=0 if segment is None else segment + 1)

    @property
    def _running(self) -> int:
        """The first segment that has not come out."""
        segment = 0
        while segment in self._has_come:
            segment += 1
        return segment
