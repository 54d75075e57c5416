"""The engine in process: threads that encode, each with a child process that decodes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial

from pipeline.encode_stage import EncodeClip, StoppedError
from pipeline.encoded import EncodedClip
from pipeline.job import ClipProducer, ClipTensors, EncodeJob, ProduceClips, ProducerEvent, Task
from pipeline.load_stage import load_stage
from pipeline.stage_clock import StageClock, StageTime
from pipeline.stages import StageEvent, work_on
from pipeline.stop_request import StopRequest

POLL_SECONDS = 0.2
"""How soon a request to stop is noticed."""
CLOCK_SECONDS = 1.0
"""Time between two looks at how busy the workers are."""


class LocalEngine:
    """Runs the stages in this process.

    Workers share one model. Torch must be set to one thread: parallelism is by workers, which is
    faster, and gives the same bytes for any number of them.
    """

    def __init__(self, *, num_workers: int) -> None:
        self._num_workers = num_workers

    def start(self) -> None:
        """Nothing has to be started."""

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent | StageTime, None, None]:
        """Works on all tasks, in any order of completion; ends early when asked to stop.

        Closed before its end, it stops at once.

        Raises:
            JobError: A fault that is not a clip's.
        """
        halt = threading.Event()
        encode = load_stage(job, halt)
        waiting = _Waiting(tasks)
        # Bounded, so that encoded clips wait for the committer and not in memory.
        results: queue.Queue[StageEvent | _WorkerEnded] = queue.Queue(2 * self._num_workers)
        gpu = StageClock("gpu") if job.device.startswith("cuda") else None
        clocks = [_WorkerClocks(gpu) for _ in range(min(self._num_workers, len(tasks)))]
        workers = [
            threading.Thread(
                target=_work, args=(job, encode, waiting, results, stop, times), daemon=True
            )
            for times in clocks
        ]
        for worker in workers:
            worker.start()
        try:
            yield from _timed(_collect(results, len(workers), stop), clocks, gpu)
        finally:
            stop.stop()
            halt.set()
            _drain(results, workers)


class _Waiting:
    """Tasks that no worker has taken, made one at a time: one can be large, and there are many."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()

    def take(self) -> Task | None:
        """The next task, or None where there is no more."""
        with self._lock:
            return next(self._tasks, None)


class _WorkerEnded:
    """The last thing a worker puts: how it ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _WorkerClocks:
    """The times of one worker, whose decoder works ahead while it encodes."""

    def __init__(self, gpu: StageClock | None) -> None:
        self.decode, self.encode, self._gpu = StageClock("decode"), StageClock("encode"), gpu

    def encoding(self, encode: EncodeClip, clip: ClipTensors) -> EncodedClip:
        """Encodes a clip."""
        with self.encode.busy(), self._gpu.busy() if self._gpu else contextlib.nullcontext():
            return encode(clip)


class _UntilAsked:
    """Clips of a producer, none of which was begun after the job had been asked to finish."""

    def __init__(self, producer: ClipProducer, stop: StopRequest, clock: StageClock) -> None:
        self._producer, self._stop, self._clock = producer, stop, clock

    def produce(self, task: Task) -> Iterator[ProducerEvent]:
        """As the producer does; a task that is left has no end."""
        is_asked = False
        events = self._producer.produce(task)
        while True:
            with self._clock.busy():
                event = next(events, None)
            is_new = is_asked and isinstance(event, ClipTensors)
            if event is None or is_new or self._stop.is_now:
                return
            yield event
            is_asked = self._stop.is_asked

    def close(self) -> None:
        """Releases what the producer holds."""
        self._producer.close()


def _timed(
    events: Iterator[StageEvent | None], clocks: Sequence[_WorkerClocks], gpu: StageClock | None
) -> Iterator[StageEvent | StageTime]:
    """Events, and every second and at the end what went by for the workers."""
    all_clocks = [*(one.decode for one in clocks), *(one.encode for one in clocks)]
    all_clocks += [gpu] if gpu else []
    last = time.monotonic()
    for event in events:
        if event is not None:
            yield event
        if time.monotonic() - last >= CLOCK_SECONDS:
            last = time.monotonic()
            yield from (clock.take() for clock in all_clocks)
    yield from (clock.take() for clock in all_clocks)


def _collect(
    results: queue.Queue[StageEvent | _WorkerEnded], num_workers: int, stop: StopRequest
) -> Iterator[StageEvent | None]:
    """What workers give until all have ended, or until there is to be no more of it.

    None where nothing came for a moment.
    """
    num_ended = 0
    # What lies there finished is taken, however soon all is to end.
    while num_ended < num_workers and not (stop.is_now and results.empty()):
        try:
            event = results.get(timeout=POLL_SECONDS)
        except queue.Empty:
            yield None
            continue
        if isinstance(event, _WorkerEnded):
            num_ended += 1
            if event.error is not None:
                raise event.error
        else:
            yield event


def _drain(
    results: queue.Queue[StageEvent | _WorkerEnded], workers: Sequence[threading.Thread]
) -> None:
    """Lets workers that wait for room in the queue see that they are to stop."""
    for worker in workers:
        while worker.is_alive():
            while not results.empty():
                results.get()
            worker.join(POLL_SECONDS)


def _work(
    job: EncodeJob,
    encode: EncodeClip,
    waiting: _Waiting,
    results: queue.Queue[StageEvent | _WorkerEnded],
    stop: StopRequest,
    clocks: _WorkerClocks,
) -> None:
    error: BaseException | None = None
    try:
        producer = _UntilAsked(
            ProduceClips(job, should_stop=lambda: stop.is_now), stop, clocks.decode
        )
        try:
            while not stop.is_asked and (task := waiting.take()) is not None:
                for event in work_on(task, producer, partial(clocks.encoding, encode)):
                    results.put(event)
        finally:
            producer.close()
    except StoppedError:
        pass
    except BaseException as caught:
        # Carried to the driver's thread and raised there.
        error = caught
    results.put(_WorkerEnded(error))
