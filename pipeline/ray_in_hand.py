"""What is known of a source while actors work on it: what arrived, what was lost, who died."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from latents.errors import JobError
from pipeline.decode import SourceTask
from pipeline.job import Task

MAX_LOST_CLIPS = 100
"""Clips of one source that may be lost with their nodes."""


@dataclass(slots=True)
class Deaths:
    """Workers that died one after the other at the same segment."""

    _segment: int | None = None
    _nodes: list[str] = field(default_factory=list)

    def add(self, segment: int, *, node: str) -> None:
        """A worker died at a segment; deaths at another one before it count no more."""
        if segment != self._segment:
            self._segment = segment
            self._nodes = []
        self._nodes.append(node)

    def count(self, nodes_alive: Collection[str]) -> int:
        """Deaths that may be the segment's doing: a node that is gone took its workers along."""
        return sum(node in nodes_alive for node in self._nodes)


@dataclass(slots=True)
class SourceInHand:
    """A source from its first attempt on, until all its segments have been encoded or rejected."""

    task: Task
    num_encoding: int = 0
    """Clips that arrived and are neither encoded nor rejected yet."""
    num_segments: int | None = None
    """Known once the source was decoded to its end."""
    is_queued: bool = False
    """Whether it waits for a decoder, or is in the hands of one."""
    deaths: Deaths = field(default_factory=Deaths)
    """Of decoders."""
    _arrived: set[int | None] = field(default_factory=set)
    _is_decoded: bool = False
    _num_lost: int = 0
    _has_lost: bool = False
    """Whether a clip was lost since the present attempt began."""

    def attempt(self) -> Task:
        """What the next decoder is asked for: all but what arrived."""
        self.is_queued = True
        self._has_lost = False
        if not isinstance(self.task, SourceTask):
            return self.task
        arrived = {segment for segment in self._arrived if segment is not None}
        return replace(self.task, skip_segments=self.task.skip_segments | arrived)

    def arrive(self, segment: int | None) -> bool:
        """Notes a clip or a rejection (None: of the whole source); whether it is new."""
        is_new = segment not in self._arrived
        self._arrived.add(segment)
        return is_new

    def lose(self, segment: int) -> None:
        """A clip that arrived is gone, and its segment is to be decoded again.

        Raises:
            JobError: This happened too often for nodes that come and go.
        """
        self._arrived.remove(segment)
        self._is_decoded, self._has_lost = False, True
        self._num_lost += 1
        if self._num_lost > MAX_LOST_CLIPS:
            raise JobError(
                f"{self.task.uri}: {self._num_lost} decoded clips were lost before they could be "
                "encoded; look in Ray's logs for nodes that leave, or for a full object store"
            )

    def decoded(self, num_segments: int) -> None:
        """A decoder came to the source's end."""
        self.num_segments = num_segments
        self._is_decoded = not self._has_lost

    @property
    def is_decoded(self) -> bool:
        """Whether no decoder need look at it again."""
        return self._is_decoded

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self._is_decoded and self.num_encoding == 0

    @property
    def running_segment(self) -> int:
        """The segment that a decoder is at, as far as what arrived tells."""
        if not isinstance(self.task, SourceTask):
            return 0
        done = self.task.skip_segments | self._arrived
        segment = 0
        while segment in done:
            segment += 1
        return segment
