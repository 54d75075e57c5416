"""The Ray actor that decodes. It imports no torch, so that many of them fit on one machine."""

from __future__ import annotations

from collections.abc import Iterator

from latents.clip import Clip
from pipeline.decode import DecodeEvent
from pipeline.job import EncodeJob, Task, open_producer


class DecodeActor:
    """Produces the clips of a task, each announced by its segment number.

    The driver reads the announcement and passes the clip on without fetching it.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._producer = open_producer(job)

    def decode(self, task: Task) -> Iterator[DecodeEvent | int]:
        """Events of a task, with a segment's number before each clip."""
        for event in self._producer.produce(task):
            if isinstance(event, Clip):
                yield event.segment
            yield event
