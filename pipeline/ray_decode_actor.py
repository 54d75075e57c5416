"""The Ray actor that decodes. It imports no torch, so that many of them fit on one machine."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.job import ClipTensors, EncodeJob, ProduceClips, ProducerEvent, Task


class DecodeActor:
    """Produces the clips of a task, each announced by its segment number.

    The driver reads the announcement and passes the clip on without fetching it.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._producer = ProduceClips(job)

    def decode(self, task: Task) -> Iterator[ProducerEvent | int]:
        """Events of a task, with a segment's number before each clip."""
        for event in self._producer.produce(task):
            if isinstance(event, ClipTensors):
                yield event.segment
            yield event
