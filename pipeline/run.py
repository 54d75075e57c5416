"""Running a job: plan, engine, committer, failure budget and interruption."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache, require_recipe
from latents.cache.refs import Ref, read_ref, write_recipes, write_ref
from latents.cache.rows import QuarantineRow
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.errors import FailureBudgetError, InterruptedJobError
from latents.fields import Level
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import Recipe
from latents.store.tar_store import TarShardWriter
from pipeline.committer import Committer
from pipeline.job import CachedClipTask, EncodeJob, Task
from pipeline.plan import IngestPlan, Wanted, combined_digest, known_files, plan_ingest, source_row
from pipeline.progress import Tally, show_progress
from pipeline.recipes import (
    admission_digest,
    decode_versions,
    encode_versions,
    kl_recipes,
    segmentation_digest,
    wanted_recipes,
)
from pipeline.settings import IngestSettings
from pipeline.sources import HashedSource, Source, hash_sources
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
    num_quarantined: int
    """Clips and sources given up, in this run or before, among those asked for."""
    num_sources_with_rows: int
    commit: int
    seconds: float


@dataclass(slots=True)
class _Outcome:
    """Counts of a run while it goes on."""

    tally: Tally = field(default_factory=Tally)
    causes: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    failed_in_a_row: int = 0
    num_failed: int = 0

    def finish(self, digest: str) -> None:
        """Counts a source and raises `FailureBudgetError` where too many have failed."""
        self.tally.num_done += 1
        failed = digest not in self.accepted
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


def ingest(
    sources: Sequence[Source],
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoder: EncoderIdentity,
    levels: tuple[Level, ...],
    engine: Engine,
    device: str,
) -> JobResult:
    """Videos and scenes to committed latents.

    Sources whose latents are there already are neither decoded nor encoded. ``refs/current``
    moves when all is done.

    Raises:
        StaleFieldError: The cache's current latents were made by other recipes.
        InterruptedJobError: Ctrl-C or SIGTERM; what was finished is committed.
        JobError: Any other fault that is not a source's.
    """
    started = time.monotonic()
    recipes = wanted_recipes(settings, encoder, levels)
    current = read_ref(layout, "current")
    for name, recipe in recipes.items():
        require_recipe(layout, name, current.recipes if current else {}, recipe)
    snapshot = load_snapshot(layout)
    wanted = Wanted(
        recipes=frozenset(recipe.digest for recipe in recipes.values()),
        segmentation=segmentation_digest(settings),
        admission=admission_digest(settings),
        decode_versions=decode_versions(),
    )
    with show_progress("hashed", len(sources)) as report:
        hashed = hash_sources(
            sources,
            known_files(snapshot),
            num_threads=settings.run.num_workers,
            on_hashed=lambda done, total: report(Tally(num_done=done)),
        )
    plan = plan_ingest(hashed, snapshot, wanted)
    by_digest: dict[str, list[HashedSource]] = {}
    for one in hashed:
        if isinstance(one, HashedSource):
            by_digest.setdefault(one.digest, []).append(one)
    job = EncodeJob(
        settings=settings,
        levels=levels,
        device=device,
        cache_root=layout.root,
        reads_cached_clips=False,
    )
    outcome = _run(
        job,
        plan,
        layout=layout,
        recipes=recipes,
        snapshot=snapshot,
        engine=engine,
        wanted=wanted,
        by_digest=by_digest,
    )
    commit = _move_current(layout, recipes)
    with_rows = outcome.accepted | set(snapshot.latents["source"].to_pylist())
    return JobResult(
        num_sources=len(sources),
        num_already_present=plan.num_present,
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_quarantined=outcome.tally.num_failures
        + plan.num_quarantined
        + len(plan.quarantine_rows),
        num_sources_with_rows=len(with_rows & by_digest.keys()),
        commit=commit,
        seconds=time.monotonic() - started,
    )


def refresh_kl(
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoder: EncoderIdentity,
    engine: Engine,
    device: str,
) -> JobResult:
    """The ``kl`` level anew from the ``clip`` level, beside the old one; no video is opened.

    Raises:
        CacheError: The cache keeps no clip level.
    """
    started = time.monotonic()
    recipes = kl_recipes(settings, encoder)
    parents = {parent.field: parent for recipe in recipes.values() for parent in recipe.parents}
    clips = open_cache(layout.root, level="clip", recipes=parents)
    snapshot = load_snapshot(layout)
    present = _present_pairs(snapshot)
    digests = [recipe.digest for recipe in recipes.values()]
    uris = {row["digest"]: row["uri"] for row in snapshot.sources.to_pylist()}
    tasks = tuple(
        CachedClipTask(uri=uris.get(source, source), digest=source, clip=clip)
        for clip in clips
        for source in [clip.rows["clip.video"].source]
        if not all((digest, clip.clip) in present for digest in digests)
    )
    job = EncodeJob(
        settings=settings,
        levels=("kl",),
        device=device,
        cache_root=layout.root,
        reads_cached_clips=True,
    )
    outcome = _Outcome()
    committer = _committer(layout, recipes, snapshot, settings)
    write_recipes(layout, recipes.values())
    with show_progress("encoded", len(tasks), unit="clips") as report:

        def take(event: StageEvent) -> None:
            _take(event, committer, outcome, recipes)
            if isinstance(event, SourceFinished):
                outcome.finish(event.task.digest)
            report(outcome.tally)

        _drive(engine, job, tasks, committer, take)
    commit = _move_current(layout, recipes)
    return JobResult(
        num_sources=len(clips),
        num_already_present=len(clips) - len(tasks),
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_quarantined=outcome.tally.num_failures,
        num_sources_with_rows=len(clips) - len(tasks) + len(outcome.accepted),
        commit=commit,
        seconds=time.monotonic() - started,
    )


def _run(
    job: EncodeJob,
    plan: IngestPlan,
    *,
    layout: CacheLayout,
    recipes: Mapping[str, Recipe],
    snapshot: Snapshot,
    engine: Engine,
    wanted: Wanted,
    by_digest: Mapping[str, Sequence[HashedSource]],
) -> _Outcome:
    outcome = _Outcome()
    committer = _committer(layout, recipes, snapshot, job.settings)
    write_recipes(layout, recipes.values())
    for source in plan.source_rows:
        committer.add_source(source)
    for event_row in plan.quarantine_rows:
        committer.add_quarantine(event_row)
    with show_progress("ingested", len(plan.tasks)) as report:

        def take(event: StageEvent) -> None:
            _take(event, committer, outcome, recipes, wanted)
            if isinstance(event, SourceFinished):
                for hashed in by_digest[event.task.digest]:
                    committer.add_source(
                        source_row(hashed, wanted.segmentation, event.num_segments)
                    )
                outcome.finish(event.task.digest)
            report(outcome.tally)

        _drive(engine, job, plan.tasks, committer, take)
    return outcome


def _committer(
    layout: CacheLayout,
    recipes: Mapping[str, Recipe],
    snapshot: Snapshot,
    settings: IngestSettings,
) -> Committer:
    return Committer(
        layout,
        recipes=recipes,
        seen=snapshot.commit,
        present=_present_pairs(snapshot),
        open_shard=lambda: TarShardWriter(layout.shards),
        shard_bytes=settings.run.shard_bytes,
        commit_seconds=settings.run.commit_seconds,
        versions=encode_versions(),
        run={"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    )


def _take(
    event: StageEvent,
    committer: Committer,
    outcome: _Outcome,
    recipes: Mapping[str, Recipe],
    wanted: Wanted | None = None,
) -> None:
    """Counts an event and hands what it brings to the committer."""
    if isinstance(event, EncodedClip):
        committer.add_clip(event)
        outcome.accepted.add(event.key.source_digest)
        outcome.tally.num_clips += 1
        outcome.tally.num_images += event.num_kl_images
    elif isinstance(event, ClipRejected):
        committer.add_quarantine(_quarantine_row(event, recipes, wanted))
        outcome.tally.num_failures += 1
        outcome.causes[type(event.error).__name__] += 1


def _quarantine_row(
    event: ClipRejected, recipes: Mapping[str, Recipe], wanted: Wanted | None
) -> QuarantineRow:
    decoding = event.stage == "decode" and wanted is not None
    return QuarantineRow(
        source=event.task.uri,
        source_digest=event.task.digest,
        segment=event.segment,
        stage=event.stage,
        recipe=wanted.admission
        if decoding and wanted is not None
        else combined_digest(recipe.digest for recipe in recipes.values()),
        error_class=type(event.error).__name__,
        message=event.error.reason,
        versions=wanted.decode_versions if decoding and wanted is not None else encode_versions(),
    )


def _drive(
    engine: Engine,
    job: EncodeJob,
    tasks: Sequence[Task],
    committer: Committer,
    take: Callable[[StageEvent], None],
) -> None:
    """Hands each event of an engine to ``take``, and commits what is finished, however it ends.

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
            f"interrupted by {signal.Signals(received[0]).name}; everything finished is "
            "committed. Run the same command again and it goes on from there",
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


def _present_pairs(snapshot: Snapshot) -> set[tuple[str, str]]:
    latents = snapshot.latents
    return set(zip(latents["recipe"].to_pylist(), latents["clip"].to_pylist(), strict=True))


def _move_current(layout: CacheLayout, recipes: Mapping[str, Recipe]) -> int:
    """Points ``refs/current`` at the log's head and at these recipes; others stay.

    It never moves backwards: another driver may have moved it further meanwhile.
    """
    head = CommitLog(layout).head()
    current = read_ref(layout, "current")
    found = dict(current.recipes) if current else {}
    wanted = found | {name: recipe.digest for name, recipe in recipes.items()}
    is_ahead = current is None or current.commit < head
    if head >= 0 and (is_ahead or wanted != found):
        write_ref(layout, "current", Ref(commit=head, recipes=wanted))
    return head
