"""The engine on Ray: actors that decode, actors that encode, and a loop that feeds them.

Ray schedules; it never decides what is committed. Results go to the one committer of the
driver, and what a lost actor had in hand is tried again a bounded number of times.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from latents.errors import ClipError, ConfigError, JobError, LatentError, WorkerDiedError
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.job import EncodeJob, SourceUnread, Task
from pipeline.ray_decode_actor import DecodeActor
from pipeline.ray_encode_actor import EncodeActor
from pipeline.stages import (
    ClipRejected,
    SourceFinished,
    StageEvent,
)

MAX_ATTEMPTS = 3
"""How often a task or clip is given to an actor that then dies, before it is given up."""
POLL_SECONDS = 0.2
LOST = (RayActorError, ObjectLostError, OutOfMemoryError)
"""An actor, its node or an object went away: worth another attempt."""
ACTOR_CPUS = 0.5
"""Of a core, for each decoding and each encoding actor: one of the two is mostly waiting."""


class RayEngine:
    """Runs the stages on Ray; starts it on this machine where no cluster is named.

    Args:
        num_workers: Decoding actors, and encoding actors where there is no GPU; 0 for as many
            as the cluster has cores.
        in_flight_bytes: Bound on decoded clips waiting for an encoder. Each decoding actor may
            hold a few more that it has not handed over.
        address: Of a cluster to join.
    """

    def __init__(
        self, *, num_workers: int, in_flight_bytes: int, address: str | None = None
    ) -> None:
        self._num_workers = num_workers
        self._in_flight_bytes = in_flight_bytes
        self._address = address

    def start(self) -> None:
        """Joins the cluster or starts Ray, unless this process has done so already.

        Before signal handlers are set: Ray sets one for SIGTERM.
        """
        if ray.is_initialized():
            return
        if self._address is None:
            # Ray's metrics and dashboard are of no use to a run of minutes on one machine.
            ray.init(
                address="local",
                num_cpus=self._num_workers or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster answers at {self._address!r} ({error}); give another "
                "--ray-address, or none to start Ray on this machine"
            ) from error

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], should_stop: Callable[[], bool]
    ) -> Generator[StageEvent, None, None]:
        """Works on all tasks, in any order of completion; ends early when asked to stop.

        Raises:
            JobError: A fault that is not a clip's, from whichever actor met it.
        """
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        # A decoder and an encoder take half a core each: more of them could not be placed.
        num_cpus = max(1, int(resources.get("CPU", 1)))
        num_decoders = min(self._num_workers or num_cpus, num_cpus)
        num_gpus = int(resources.get("GPU", 0)) if job.device == "cuda" else 0
        if job.device == "cuda" and not num_gpus:
            raise ConfigError(
                "run.device is cuda, but the Ray cluster has no GPU; use --set run.device=cpu"
            )
        run = _Run(
            job,
            tasks,
            num_decoders=num_decoders,
            num_encoders=num_gpus or num_decoders,
            max_clips=max(2, self._in_flight_bytes // _clip_bytes(job)),
        )
        try:
            yield from run.events(should_stop)
        finally:
            run.close()


@dataclass(slots=True)
class _Decoding:
    """A task in a decoding actor's hands."""

    task: Task
    actor: Any
    num_attempts: int
    announced: int | None = None
    """Segment of the clip that comes next."""
    num_encoding: int = 0
    num_segments: int | None = None
    """Known once the task has been decoded to its end."""


@dataclass(slots=True)
class _Encoding:
    """A clip waiting for, or in, an encoding actor's hands."""

    decoding: _Decoding
    segment: int
    clip: Any
    num_attempts: int = 0
    actor: Any = None


class _Run:
    """The loop of one run: which actor holds what."""

    def __init__(
        self,
        job: EncodeJob,
        tasks: Sequence[Task],
        *,
        num_decoders: int,
        num_encoders: int,
        max_clips: int,
    ) -> None:
        gpus = 1 if job.device == "cuda" else 0
        decoder: Any = ray.remote(num_cpus=ACTOR_CPUS)(DecodeActor)
        encoder: Any = ray.remote(num_cpus=ACTOR_CPUS, num_gpus=gpus)(EncodeActor)
        self._new_decoder: Callable[[], Any] = lambda: decoder.remote(job)
        self._new_encoder: Callable[[], Any] = lambda: encoder.remote(job)
        self._idle_decoders = [self._new_decoder() for _ in range(min(num_decoders, len(tasks)))]
        self._idle_encoders = [self._new_encoder() for _ in range(min(num_encoders, len(tasks)))]
        # One at a time: a task can be large, and there can be millions.
        self._untried = iter(tasks)
        self._tasks: deque[tuple[Task, int]] = deque()
        self._max_clips = max_clips
        self._decoding: dict[Any, _Decoding] = {}
        self._waiting: deque[_Encoding] = deque()
        self._encoding: dict[Any, _Encoding] = {}

    def events(self, should_stop: Callable[[], bool]) -> Iterator[StageEvent]:
        """Everything the stages give, until nothing is left."""
        while True:
            if should_stop():
                return
            self._assign()
            if not (self._decoding or self._waiting or self._encoding):
                return
            full = len(self._waiting) + len(self._encoding) >= self._max_clips
            watched = [*self._encoding, *([] if full else self._decoding)]
            ready, _ = ray.wait(watched, num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                if reference in self._encoding:
                    yield from self._encoded(reference)
                else:
                    yield from self._decoded(reference)

    def close(self) -> None:
        """Ends all actors."""
        decoding = (one.actor for one in self._decoding.values())
        encoding = (one.actor for one in self._encoding.values())
        for actor in [*self._idle_decoders, *self._idle_encoders, *decoding, *encoding]:
            ray.kill(actor)

    def _assign(self) -> None:
        while self._idle_decoders:
            if not self._tasks:
                self._tasks.extend((task, 1) for task in itertools.islice(self._untried, 1))
            if not self._tasks:
                break
            task, num_attempts = self._tasks.popleft()
            actor = self._idle_decoders.pop()
            stream = actor.decode.options(
                num_returns="streaming", _generator_backpressure_num_objects=4
            ).remote(task)
            self._decoding[stream] = _Decoding(task=task, actor=actor, num_attempts=num_attempts)
        while self._waiting and self._idle_encoders:
            encoding = self._waiting.popleft()
            encoding.actor = self._idle_encoders.pop()
            encoding.num_attempts += 1
            self._encoding[encoding.actor.encode.remote(encoding.clip)] = encoding

    def _decoded(self, stream: Any) -> Iterator[StageEvent]:
        """Takes the next object of a decoding task."""
        decoding = self._decoding[stream]
        try:
            reference = next(stream)
            if decoding.announced is not None:
                self._waiting.append(_Encoding(decoding, decoding.announced, reference))
                decoding.announced = None
                decoding.num_encoding += 1
                return
            event = ray.get(reference)
        except StopIteration:
            del self._decoding[stream]
            self._idle_decoders.append(decoding.actor)
            return
        except LOST:
            del self._decoding[stream]
            self._idle_decoders.append(self._new_decoder())
            yield from self._retry(decoding)
            return
        except RayError as error:
            raise _cause(error) from error
        if isinstance(event, int):
            decoding.announced = event
        elif isinstance(event, SegmentRejected):
            yield ClipRejected(
                task=decoding.task, segment=event.segment, stage="decode", error=event.error
            )
        elif isinstance(event, SourceUnread):
            yield ClipRejected(task=decoding.task, segment=None, stage="read", error=event.error)
        elif isinstance(event, SourceDecoded):
            decoding.num_segments = event.num_segments
            yield from self._finished(decoding)

    def _encoded(self, reference: Any) -> Iterator[StageEvent]:
        """Takes an encoded clip, or tries again where its actor died."""
        encoding = self._encoding.pop(reference)
        decoding = encoding.decoding
        try:
            result = ray.get(reference)
        except LOST:
            self._idle_encoders.append(self._new_encoder())
            if encoding.num_attempts < MAX_ATTEMPTS:
                self._waiting.append(encoding)
                return
            result = _worker_died(decoding.task)
        except RayError as error:
            raise _cause(error) from error
        else:
            self._idle_encoders.append(encoding.actor)
        decoding.num_encoding -= 1
        if isinstance(result, ClipError):
            yield ClipRejected(
                task=decoding.task, segment=encoding.segment, stage="encode", error=result
            )
        else:
            yield result
        yield from self._finished(decoding)

    def _finished(self, decoding: _Decoding) -> Iterator[StageEvent]:
        if decoding.num_segments is not None and decoding.num_encoding == 0:
            yield SourceFinished(task=decoding.task, num_segments=decoding.num_segments)

    def _retry(self, decoding: _Decoding) -> Iterator[StageEvent]:
        """Clips already passed on are made again; the committer keeps one of each."""
        task = decoding.task
        if decoding.num_attempts < MAX_ATTEMPTS:
            self._tasks.append((task, decoding.num_attempts + 1))
            return
        yield ClipRejected(task=task, segment=None, stage="decode", error=_worker_died(task))
        decoding.num_segments = 0
        yield from self._finished(decoding)


def _worker_died(task: Task) -> WorkerDiedError:
    return WorkerDiedError(task.uri, f"the worker died each of the {MAX_ATTEMPTS} times")


def _cause(error: RayError) -> BaseException:
    """What an actor raised: ours as it was, so that it is reported like in process."""
    if not isinstance(error, RayTaskError):
        return JobError(f"Ray failed: {error}")
    cause = error.cause
    return cause if isinstance(cause, LatentError) else error


def _clip_bytes(job: EncodeJob) -> int:
    """Bytes of the largest clip there can be, pictures and stereo sound at 48 kHz."""
    spec = job.settings.clip
    num_frames = spec.segment_frames + spec.tail_frames
    return num_frames * 3 * spec.size**2 + spec.num_samples(num_frames, 48_000) * 2 * 4
