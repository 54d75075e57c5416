"""Driving an engine: events to the committer, the failure budget, interruption."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from latents.cache.rows import QuarantineRow
from latents.errors import FailureBudgetError, InterruptedJobError
from pipeline.committer import Committer
from pipeline.decode import SourceTask
from pipeline.encoded import EncodedClip
from pipeline.figures import Figures
from pipeline.job import EncodeJob, Task
from pipeline.progress import Tally
from pipeline.run_folder import RunFolder
from pipeline.run_watch import watching
from pipeline.stage_clock import StageClock, StageTime, StageTimes
from pipeline.stages import ClipRejected, SourceFinished, StageEvent
from pipeline.stop_request import StopRequest
from pipeline.stop_signals import StopSignals

BUDGET_MIN_SOURCES = 200
"""From so many finished sources on, more than half of them failing stops the run."""
BUDGET_IN_A_ROW = 100
"""So many failing one after the other stop the run."""


EngineEvent = StageEvent | StageTime


class Engine(Protocol):
    """Runs the stages of a job over tasks, somewhere."""

    def start(self) -> None:
        """Gets ready; called before signal handlers are set, and only where there is work."""

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[EngineEvent, None, None]:
        """Events of all tasks; for one source, its end comes after its clips.

        In between, where it can tell, how long its workers were busy.

        Asked to finish, it begins no source, and ends those in hand after the clip they are at.
        """


@runtime_checkable
class Publisher(Protocol):
    """An engine that has a place of its own where the figures of a run are seen."""

    def publish(self, figures: Figures) -> None:
        """Brings them there; called from another thread, every few seconds and at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """What a run did."""

    num_sources: int
    """Sources asked for."""
    num_already_present: int
    num_clips_encoded: int
    num_kl_images: int
    num_videos_opened: int
    """Files that were decoded; scenes are rendered and not counted."""
    num_quarantined: int
    """Clips and sources given up, in this run or before, among those asked for."""
    num_sources_with_rows: int
    num_dropped: int
    """Sources asked for that were taken down, and were passed over."""
    num_dropped_clips: int
    """Clips of the others that were taken down one by one."""
    num_clips_left: int
    """Clips whose sources changed or are gone."""
    commit: int
    current_stays: str | None
    """Why ``refs/current`` was not moved to what this job made; None where it was."""
    seconds: float
    num_windows_encoded: int
    """Of the clips that were encoded."""
    causes: Mapping[str, int]
    """How many were given up in this run by which class of error."""
    busy_shares: Mapping[str, float]
    """By stage, which share of its workers' time it was busy."""


@dataclass(slots=True)
class Outcome:
    """Counts of a run while it goes on."""

    tally: Tally = field(default_factory=Tally)
    causes: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    failed_in_a_row: int = 0
    num_failed: int = 0
    in_two_parts: set[str] = field(default_factory=set)
    """Clips of which the first part is still to come; they count with the second."""
    num_videos_opened: int = 0
    busy_shares: Mapping[str, float] = field(default_factory=dict)
    """By stage, once the run is over."""

    def accept(self, encoded: EncodedClip) -> None:
        """Counts a clip that became rows."""
        self.accepted.add(encoded.key.source_digest)
        key = str(encoded.key)
        if key in self.in_two_parts:
            self.in_two_parts.remove(key)
        else:
            self.tally.num_clips += 1
            self.tally.num_windows += encoded.grid.num_windows
        self.tally.num_images += encoded.num_kl_images

    def reject(self, rejected: ClipRejected) -> None:
        """Counts a clip or source that was given up."""
        self.rejected.add(rejected.task.digest)
        self.tally.num_failures += 1
        self.causes[type(rejected.error).__name__] += 1

    def finish(self, task: Task) -> None:
        """Counts a source and raises `FailureBudgetError` where too many have failed."""
        self.tally.num_done += 1
        self.num_videos_opened += isinstance(task, SourceTask) and task.path is not None
        digest = task.digest
        failed = digest in self.rejected and digest not in self.accepted
        self.num_failed += failed
        self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
        num_done = self.tally.num_done
        half = num_done >= BUDGET_MIN_SOURCES and self.num_failed > num_done / 2
        if half or self.failed_in_a_row >= BUDGET_IN_A_ROW:
            causes = "; ".join(f"{count} x {name}" for name, count in self.causes.most_common(3))
            raise FailureBudgetError(
                f"stopped: {self.num_failed} of {num_done} sources failed, "
                f"{self.failed_in_a_row} in a row, so the fault is likely not theirs. "
                f"Most often: {causes}. What was encoded is committed; mend the cause and run "
                "the same command again"
            )


def run_tasks(
    job: EncodeJob,
    tasks: Sequence[Task],
    *,
    engine: Engine,
    committer: Committer,
    to_quarantine: Callable[[ClipRejected], QuarantineRow],
    on_finished: Callable[[SourceFinished], None] = lambda event: None,
    in_two_parts: Collection[str] = (),
    purpose: str,
    unit: str,
) -> Outcome:
    """Works on all tasks, seen by all, and commits what is finished, when interrupted too.

    Args:
        job: What the workers must know.
        tasks: What to work on.
        engine: Who works.
        committer: Takes what they make; it is flushed at the end.
        to_quarantine: The row of a rejected clip or source.
        on_finished: Called for each finished task, before it is counted.
        in_two_parts: Clips that come by two tasks, each with some of the fields.
        purpose: What the run is for, as its folder says.
        unit: What a task is called in progress.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came.
        FailureBudgetError: Too many sources fail.
        JobError: Any other fault that is not a clip's.
    """
    outcome = Outcome(in_two_parts=set(in_two_parts))
    if not tasks:
        committer.flush()
        return outcome

    def take(event: StageEvent) -> None:
        if isinstance(event, EncodedClip):
            # A clip made again after a worker's death is neither stored nor counted twice.
            if committer.add_clip(event):
                outcome.accept(event)
        elif isinstance(event, ClipRejected):
            committer.add_quarantine(to_quarantine(event))
            outcome.reject(event)
        else:
            on_finished(event)
            outcome.finish(event.task)

    stop = StopRequest(drain_seconds=job.settings.run.drain_seconds)
    seen = _Seen(outcome, stop, num_tasks=len(tasks))
    folder = RunFolder(job.cache_url, purpose=purpose, unit=unit)
    publish = engine.publish if isinstance(engine, Publisher) else None
    with watching(seen.figures, verb="encoded", unit=unit, folder=folder, publish=publish):
        _drive(engine, job, tasks, stop, committer, seen.noting(take))
    stages = seen.figures().stages
    outcome.busy_shares = {stage: round(time.busy_share, 4) for stage, time in stages.items()}
    return outcome


class _Seen:
    """The figures of a run that goes on, for threads that look."""

    def __init__(self, outcome: Outcome, stop: StopRequest, *, num_tasks: int) -> None:
        self._outcome, self._stop, self._num_tasks = outcome, stop, num_tasks
        self._started = time.monotonic()
        self._committing = StageClock("commit")
        self._times = StageTimes()

    def noting(self, take: Callable[[StageEvent], None]) -> Callable[[EngineEvent], None]:
        """Takes the times among an engine's events, and times who takes the others."""

        def note(event: EngineEvent) -> None:
            if isinstance(event, StageTime):
                self._times.add(event)
                return
            with self._committing.busy():
                take(event)

        return note

    def figures(self) -> Figures:
        """As they are now."""
        self._times.add(self._committing.take())
        tally = self._outcome.tally
        return Figures(
            seconds=time.monotonic() - self._started,
            num_total=self._num_tasks,
            num_done=tally.num_done,
            num_clips=tally.num_clips,
            num_windows=tally.num_windows,
            num_images=tally.num_images,
            num_quarantined=tally.num_failures,
            causes=dict(Counter(dict(self._outcome.causes)).most_common()),
            stages=self._times.totals(),
            # An engine asks its own workers to stop when all is done.
            is_stopping=self._stop.is_asked and tally.num_done < self._num_tasks,
        )


def _drive(
    engine: Engine,
    job: EncodeJob,
    tasks: Sequence[Task],
    stop: StopRequest,
    committer: Committer,
    take: Callable[[EngineEvent], None],
) -> None:
    """Hands each event of an engine to ``take``, and commits what is finished.

    A fault of the job itself loses what was made since the last commit, and nothing else.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came.
        FailureBudgetError: ``take`` found that too many sources fail.
    """
    engine.start()
    with StopSignals(stop) as signals:
        try:
            with contextlib.closing(engine.run(job, tasks, stop)) as events:
                for event in events:
                    take(event)
            with signals.held():
                committer.flush()
        except FailureBudgetError:
            with signals.held():
                committer.flush()
            raise
        finally:
            committer.discard()
    if signals.received:
        raise InterruptedJobError(
            signals.received[0],
            f"interrupted by {signal.Signals(signals.received[0]).name}; what was finished is "
            "committed. Run the same command again and it goes on from there",
        )
