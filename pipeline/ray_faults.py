"""What Ray's errors mean for a run: another attempt, a charge, or the end of the job."""

from __future__ import annotations

import re

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from latents.errors import JobError, LatentError
from pipeline.ray_node import INSTALL

WORKER_DIED = (RayActorError, OutOfMemoryError, WorkerCrashedError)
LOST = (*WORKER_DIED, NodeDiedError, ObjectLostError)
"""An actor, its node or an object went away: worth another attempt."""


def may_be_charged(error: RayError) -> bool:
    """Whether a worker died, and not because its node went or an object was lost."""
    return isinstance(error, WORKER_DIED) and not getattr(error, "preempted", False)


def why_not_constructed(words: str) -> str:
    """What Ray says of an actor whose class or constructor failed, in one line."""
    address = re.search(r"ip=([^,)\s]+)", words)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return (
        f"node {address[1] if address else 'unknown'} cannot run this command's actors: "
        f"{lines[-1]}; {INSTALL}"
    )


def cause_of(error: RayError) -> BaseException:
    """What an actor raised: ours as it was, so that it is reported like in process."""
    if not isinstance(error, RayTaskError):
        return JobError(f"Ray failed: {error}")
    cause = error.cause
    return cause if isinstance(cause, LatentError) else error
