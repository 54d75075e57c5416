"""The Ray actor that decodes. It imports no torch, so that many of them fit on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from latents.errors import JobError
from pipeline.decode import SourceTask
from pipeline.job import ClipTensors, EncodeJob, ProduceClips, ProducerEvent, Task
from pipeline.ray_node import INSTALL, naming_node, node_id, node_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipAnnounced:
    """A clip comes next."""

    segment: int
    num_bytes: int
    """Of its tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGiven:
    """What came last is a clip, and whole: an actor's death would have come in its place."""


class DecodeActor:
    """Produces the clips of a task, each between an announcement and a confirmation.

    The driver reads those two and passes the clip on without fetching it.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._producer = ProduceClips(job)

    def ready(self) -> str:
        """The id of the node that it runs on."""
        return node_id()

    def decode(self, task: Task) -> Iterator[ProducerEvent | ClipAnnounced | ClipGiven]:
        """Events of a task; raises `JobError` where this node cannot decode."""
        if isinstance(task, SourceTask) and task.path is not None and find_spec("av") is None:
            raise JobError(f"node {node_name()} cannot decode videos: PyAV is missing; {INSTALL}")
        with naming_node():
            for event in self._producer.produce(task):
                if isinstance(event, ClipTensors):
                    num_bytes = sum(tensor.nbytes for tensor in event.tensors.values())
                    yield ClipAnnounced(segment=event.segment, num_bytes=num_bytes)
                    yield event
                    yield ClipGiven()
                else:
                    yield event
