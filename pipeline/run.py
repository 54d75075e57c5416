"""Driving an engine: events to the committer, the failure budget, interruption."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from latents.cache.rows import QuarantineRow
from latents.errors import FailureBudgetError, InterruptedJobError
from pipeline.committer import Committer
from pipeline.decode import SourceTask
from pipeline.job import EncodeJob, Task
from pipeline.progress import Tally, show_progress
from pipeline.stages import ClipRejected, EncodedClip, SourceFinished, StageEvent

BUDGET_MIN_SOURCES = 200
"""From so many finished sources on, more than half of them failing stops the run."""
BUDGET_IN_A_ROW = 100
"""So many failing one after the other stop the run."""


class Engine(Protocol):
    """Runs the stages of a job over tasks, somewhere."""

    def start(self) -> None:
        """Gets ready; called before signal handlers are set, and only where there is work."""

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], should_stop: Callable[[], bool]
    ) -> Generator[StageEvent, None, None]:
        """Events of all tasks; for one source, its end comes after its clips."""


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

    def accept(self, encoded: EncodedClip) -> None:
        """Counts a clip that became rows."""
        self.accepted.add(encoded.key.source_digest)
        key = str(encoded.key)
        if key in self.in_two_parts:
            self.in_two_parts.remove(key)
        else:
            self.tally.num_clips += 1
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
    unit: str,
) -> Outcome:
    """Works on all tasks with progress, and commits what is finished, when interrupted too.

    Args:
        job: What the workers must know.
        tasks: What to work on.
        engine: Who works.
        committer: Takes what they make; it is flushed at the end.
        to_quarantine: The row of a rejected clip or source.
        on_finished: Called for each finished task, before it is counted.
        in_two_parts: Clips that come by two tasks, each with some of the fields.
        unit: What a task is called in progress.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came.
        FailureBudgetError: Too many sources fail.
        JobError: Any other fault that is not a clip's.
    """
    outcome = Outcome(in_two_parts=set(in_two_parts))
    with show_progress("encoded", len(tasks), unit=unit) as report:

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
            report(outcome.tally)

        _drive(engine, job, tasks, committer, take)
    return outcome


def _drive(
    engine: Engine,
    job: EncodeJob,
    tasks: Sequence[Task],
    committer: Committer,
    take: Callable[[StageEvent], None],
) -> None:
    """Hands each event of an engine to ``take``, and commits what is finished.

    A fault of the job itself loses what was made since the last commit, and nothing else.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came.
        FailureBudgetError: ``take`` found that too many sources fail.
    """
    if not tasks:
        committer.flush()
        return
    engine.start()
    received: list[int] = []
    try:
        with (
            _stop_signals(received),
            contextlib.closing(engine.run(job, tasks, lambda: bool(received))) as events,
        ):
            for event in events:
                take(event)
        committer.flush()
    except FailureBudgetError:
        committer.flush()
        raise
    finally:
        committer.discard()
    if received:
        raise InterruptedJobError(
            received[0],
            f"interrupted by {signal.Signals(received[0]).name}; what was finished is committed. "
            "Run the same command again and it goes on from there",
        )


@contextlib.contextmanager
def _stop_signals(received: list[int]) -> Iterator[None]:
    """Notes the first SIGINT or SIGTERM; a second one acts as it would have before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
