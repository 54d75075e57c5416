"""The loop of one run on Ray: which actor holds what, and what becomes of what is lost."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from latents.errors import ClipError, DecoderStartError, JobError, WorkerDiedError
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.job import SourceUnread, Task
from pipeline.ray_decode_actor import ClipAnnounced, ClipGiven
from pipeline.ray_faults import LOST, cause_of, may_be_charged, why_not_constructed
from pipeline.ray_in_hand import Deaths, SourceInHand
from pipeline.ray_pool import ActorPool, PoolSizes
from pipeline.ray_times import ActorTimes, Busy
from pipeline.stage_clock import StageTime
from pipeline.stages import ClipRejected, SourceFinished, StageEvent
from pipeline.stop_request import StopRequest

POLL_SECONDS = 0.2
FOLLOW_SECONDS = 2.0
"""Between two looks at what the cluster has."""
MAX_FAILED_STARTS = 5
"""Decoding processes of a node that may fail to start, one after the other."""
TIMES_SECONDS = 1.0
"""Between two words on how busy the actors are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a run asks of its cluster."""

    sizes: Callable[[], PoolSizes]
    """How many actors of each kind there is room for now."""
    nodes_alive: Callable[[], Collection[str]]
    """Ids."""


@dataclass(slots=True)
class _Decoding:
    """A source in a decoder's hands."""

    source: SourceInHand
    actor: Any
    announced: ClipAnnounced | None = None
    """Of the clip that comes next, or came and waits for its confirmation."""
    clip: Any = None


@dataclass(slots=True)
class _Encoding:
    """A clip waiting for, or in, an encoder's hands."""

    source: SourceInHand
    segment: int
    num_bytes: int
    clip: Any
    actor: Any = None
    deaths: Deaths = field(default_factory=Deaths)


class RayRun:
    """The loop of one run.

    Args:
        tasks: Taken one at a time: one can be large, and there can be millions.
        cluster: Asked every few seconds.
        decoders: Actors like `pipeline.ray_decode_actor.DecodeActor`.
        encoders: Actors like `pipeline.ray_encode_actor.EncodeActor`.
        in_flight_bytes: Once announced clips hold so much, no other is asked for until one is
            encoded. Each decoder holds at most one more, which it has not announced.
        attempts: Workers that must die at a segment before it is given up.
        times: Told who works.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        cluster: Cluster,
        decoders: ActorPool[Any],
        encoders: ActorPool[Any],
        in_flight_bytes: int,
        attempts: int,
        times: ActorTimes,
    ) -> None:
        self._untried = iter(tasks)
        self._cluster = cluster
        self._decoders, self._encoders = decoders, encoders
        self._bound_bytes, self._in_flight_bytes = in_flight_bytes, 0
        self._attempts, self._times = attempts, times
        self._again: deque[SourceInHand] = deque()
        self._decoding: dict[Hashable, _Decoding] = {}
        self._waiting: deque[_Encoding] = deque()
        self._encoding: dict[Hashable, _Encoding] = {}
        self._failed_starts: Counter[str] = Counter()
        self._next_look = 0.0
        self._is_draining = False

    def events(self, stop: StopRequest) -> Iterator[StageEvent | StageTime]:
        """Everything the stages give, until nothing is left or the run is to stop.

        Raises:
            JobError: A fault that is not a clip's, from whichever actor met it.
        """
        while not stop.is_now:
            self._is_draining = stop.is_asked
            self._follow_cluster()
            self._assign()
            if not (self._decoding or self._waiting or self._encoding or self._has_more()):
                break
            yield from self._times.take(every_seconds=TIMES_SECONDS)
            for reference in self._next_ready():
                yield from self._take(reference)
        yield from self._times.take()

    def close(self) -> None:
        """Ends all actors."""
        self._encoders.close()
        self._decoders.close()

    def _has_more(self) -> bool:
        """Whether there are sources to begin, now or once an actor is ready."""
        if self._is_draining:
            return False
        if not self._again:
            task = next(self._untried, None)
            if task is not None:
                self._again.append(SourceInHand(task))
        return bool(self._again)

    def _follow_cluster(self) -> None:
        if time.monotonic() < self._next_look:
            return
        sizes = self._cluster.sizes()
        self._next_look = time.monotonic() + FOLLOW_SECONDS
        # Encoders first: without one, nothing that decoders make is of use.
        interrupted = [
            *self._encoders.resize(sizes.encoders),
            *self._decoders.resize(sizes.decoders),
        ]
        for reference, encoding in list(self._encoding.items()):
            if encoding.actor in interrupted:
                self._waiting.append(self._encoding.pop(reference))
        for stream, decoding in list(self._decoding.items()):
            if decoding.actor in interrupted:
                self._end_attempt(stream)

    def _assign(self) -> None:
        while self._has_more() and (actor := self._decoders.take()) is not None:
            source = self._again.popleft()
            stream = actor.decode.options(
                num_returns="streaming", _generator_backpressure_num_objects=1
            ).remote(source.attempt())
            self._decoding[stream] = _Decoding(source, actor)
        while self._waiting and (actor := self._encoders.take()) is not None:
            encoding = self._waiting.popleft()
            encoding.actor = actor
            self._encoding[actor.encode.remote(encoding.clip)] = encoding

    def _next_ready(self) -> list[Any]:
        is_full = self._in_flight_bytes >= self._bound_bytes
        # What was announced counts already.
        heard = [one for one, by in self._decoding.items() if by.announced or not is_full]
        watched = [*self._encoding, *self._encoders.starting, *self._decoders.starting, *heard]
        self._times.note(
            decoders=Busy(num_busy=len(heard), num_actors=self._decoders.num_ready),
            encoders=Busy(num_busy=len(self._encoding), num_actors=self._encoders.num_ready),
        )
        if not watched:
            time.sleep(POLL_SECONDS)
            return []
        # Clips stay where they are until an encoder fetches them.
        ready, _ = ray.wait(watched, num_returns=1, timeout=POLL_SECONDS, fetch_local=False)
        return ready

    def _take(self, reference: Any) -> Iterator[StageEvent]:
        if reference in self._encoding:
            yield from self._encoded(reference)
        elif reference in self._decoding:
            yield from self._decoded(reference)
        elif reference in self._encoders.starting:
            _started(self._encoders, reference)
        else:
            _started(self._decoders, reference)

    def _decoded(self, stream: Any) -> Iterator[StageEvent]:
        """Takes the next object of a decoding task."""
        decoding = self._decoding[stream]
        try:
            reference = next(stream, None)
            if reference is None:
                if decoding.clip is not None:
                    # What was to be a clip says why there is no confirmation.
                    ray.get(decoding.clip)
                self._decoders.put_back(decoding.actor)
                self._end_attempt(stream)
                return
            if decoding.announced is not None and decoding.clip is None:
                decoding.clip = reference
                return
            event = ray.get(reference)
        except LOST as error:
            yield from self._lost_decoder(stream, error)
        except RayError as error:
            self._bear(cause_of(error), self._decoders.node_of(decoding.actor))
            self._decoders.put_back(decoding.actor)
            self._end_attempt(stream)
        else:
            yield from self._heard(stream, decoding, event)

    def _bear(self, cause: BaseException, node: str) -> None:
        """Lets a decoding process that did not start be tried again, as it may have been killed.

        Raises:
            JobError: It is another fault, or the node has had too many of these in a row.
        """
        self._failed_starts[node] += 1
        is_start = isinstance(cause, DecoderStartError)
        if not is_start or self._failed_starts[node] >= MAX_FAILED_STARTS:
            raise cause

    def _heard(self, stream: Any, decoding: _Decoding, event: Any) -> Iterator[StageEvent]:
        """What a decoder said about its source."""
        source = decoding.source
        if isinstance(event, ClipAnnounced):
            decoding.announced = event
            self._in_flight_bytes += event.num_bytes
        elif isinstance(event, ClipGiven):
            self._arrived(decoding)
            if self._is_draining:
                self._decoders.lose(decoding.actor)
                self._end_attempt(stream)
        elif isinstance(event, SegmentRejected) and source.arrive(event.segment):
            yield ClipRejected(
                task=source.task, segment=event.segment, stage="decode", error=event.error
            )
        elif isinstance(event, SourceUnread) and source.arrive(None):
            yield ClipRejected(task=source.task, segment=None, stage="read", error=event.error)
        elif isinstance(event, SourceDecoded):
            source.decoded(event.num_segments)
            yield from _finished(source)

    def _arrived(self, decoding: _Decoding) -> None:
        """A clip is whole and waits for an encoder; unless it came in an attempt before."""
        announced = decoding.announced
        assert announced is not None
        self._failed_starts.pop(self._decoders.node_of(decoding.actor), None)
        if decoding.source.arrive(announced.segment):
            decoding.source.num_encoding += 1
            self._waiting.append(
                _Encoding(
                    source=decoding.source,
                    segment=announced.segment,
                    num_bytes=announced.num_bytes,
                    clip=decoding.clip,
                )
            )
        else:
            self._in_flight_bytes -= announced.num_bytes
        decoding.announced = decoding.clip = None

    def _end_attempt(self, stream: Any) -> None:
        """A decoder is done with a source, or gone; what is missing is decoded again."""
        decoding = self._decoding.pop(stream)
        if decoding.announced is not None:
            self._in_flight_bytes -= decoding.announced.num_bytes
        decoding.source.is_queued = False
        self._queue(decoding.source)

    def _queue(self, source: SourceInHand) -> None:
        if not source.is_decoded and not source.is_queued:
            source.is_queued = True
            self._again.append(source)

    def _lost_decoder(self, stream: Any, error: RayError) -> Iterator[StageEvent]:
        """Clips that arrived are kept, and the next decoder goes on after them."""
        decoding = self._decoding[stream]
        source = decoding.source
        node = self._decoders.lose(decoding.actor)
        if may_be_charged(error) and not source.is_decoded:
            source.deaths.add(source.running_segment, node=node)
            if source.deaths.count(self._cluster.nodes_alive()) >= self._attempts:
                # As a decoder's own process that always dies: what comes after is not looked at.
                segment = source.running_segment or None
                source.arrive(source.running_segment)
                source.decoded(0 if segment is None else segment + 1)
                yield ClipRejected(
                    task=source.task,
                    segment=segment,
                    stage="decode",
                    error=self._worker_died(source.task),
                )
                yield from _finished(source)
        self._end_attempt(stream)

    def _encoded(self, reference: Any) -> Iterator[StageEvent]:
        """Takes an encoded clip, or tries again where its actor died or the clip is gone."""
        encoding = self._encoding.pop(reference)
        source = encoding.source
        result: Any
        try:
            result = ray.get(reference)
        except ObjectLostError:
            # The encoder is not to blame; where it is gone as well, the next clip will tell.
            self._encoders.put_back(encoding.actor)
            self._drop_clip(encoding)
            source.lose(encoding.segment)
            self._queue(source)
            return
        except LOST as error:
            result = self._lost_encoder(encoding, error)
            if result is None:
                self._waiting.append(encoding)
                return
        except RayError as error:
            raise cause_of(error) from error
        else:
            self._encoders.put_back(encoding.actor)
        self._drop_clip(encoding)
        if isinstance(result, ClipError):
            result = ClipRejected(
                task=source.task, segment=encoding.segment, stage="encode", error=result
            )
        yield result
        yield from _finished(source)

    def _lost_encoder(self, encoding: _Encoding, error: RayError) -> WorkerDiedError | None:
        """Why the clip is given up, or None where it is to be tried again."""
        node = self._encoders.lose(encoding.actor)
        if not may_be_charged(error):
            return None
        encoding.deaths.add(encoding.segment, node=node)
        if encoding.deaths.count(self._cluster.nodes_alive()) < self._attempts:
            return None
        return self._worker_died(encoding.source.task)

    def _drop_clip(self, encoding: _Encoding) -> None:
        self._in_flight_bytes -= encoding.num_bytes
        encoding.source.num_encoding -= 1

    def _worker_died(self, task: Task) -> WorkerDiedError:
        return WorkerDiedError(task.uri, f"the worker died each of the {self._attempts} times")


def _finished(source: SourceInHand) -> Iterator[StageEvent]:
    if source.is_finished:
        assert source.num_segments is not None
        yield SourceFinished(task=source.task, num_segments=source.num_segments)


def _started(pool: ActorPool[Any], reference: Any) -> None:
    """An actor is ready or has failed to be.

    Raises:
        JobError: It never will be, on its node.
    """
    try:
        node = ray.get(reference)
    except RayActorError as error:
        if error.actor_init_failed:
            raise JobError(why_not_constructed(str(error))) from error
        pool.failed_to_start(reference)
    except LOST:
        pool.failed_to_start(reference)
    except RayError as error:
        raise cause_of(error) from error
    else:
        pool.became_ready(reference, node=node)
