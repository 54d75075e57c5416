"""The engine in process: threads that encode, each with a child process that decodes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from pipeline.job import EncodeJob, ProduceClips, Task
from pipeline.stages import EncodeClip, StageEvent, StoppedError, load_stage, work_on

POLL_SECONDS = 0.2
"""How soon a request to stop is noticed."""


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
        self, job: EncodeJob, tasks: Sequence[Task], should_stop: Callable[[], bool]
    ) -> Generator[StageEvent, None, None]:
        """Works on all tasks, in any order of completion; ends early when asked to stop.

        Raises:
            JobError: A fault that is not a clip's.
        """
        stop = threading.Event()
        encode = load_stage(job, stop)
        waiting = _Waiting(tasks)
        # Bounded, so that encoded clips wait for the committer and not in memory.
        results: queue.Queue[StageEvent | _WorkerEnded] = queue.Queue(2 * self._num_workers)
        workers = [
            threading.Thread(target=_work, args=(job, encode, waiting, results, stop), daemon=True)
            for _ in range(min(self._num_workers, len(tasks)))
        ]
        for worker in workers:
            worker.start()
        try:
            yield from _collect(results, len(workers), should_stop)
        finally:
            stop.set()
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


def _collect(
    results: queue.Queue[StageEvent | _WorkerEnded],
    num_workers: int,
    should_stop: Callable[[], bool],
) -> Iterator[StageEvent]:
    num_ended = 0
    while num_ended < num_workers and not should_stop():
        try:
            event = results.get(timeout=POLL_SECONDS)
        except queue.Empty:
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
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        producer = ProduceClips(job)
        try:
            while not stop.is_set() and (task := waiting.take()) is not None:
                for event in work_on(task, producer, encode):
                    results.put(event)
                    if stop.is_set():
                        raise StoppedError
        finally:
            producer.close()
    except StoppedError:
        pass
    except BaseException as caught:
        # Carried to the driver's thread and raised there.
        error = caught
    results.put(_WorkerEnded(error))
