"""A planned job and its carrying out: what ingest and refresh have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.checkpoint import make_missing_checkpoints
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, read_recipe, write_recipes
from latents.cache.rows import QuarantineRow, TombstoneRow
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.fields import FIELDS, LEVELS, Level, to_compute
from latents.recipe import Recipe, recipe_differences
from latents.store.shard_writers import shard_writer_of
from pipeline.calibration import require_calibration
from pipeline.committer import Committer
from pipeline.current_ref import CurrentRef
from pipeline.decode import SourceTask
from pipeline.given_up import attempts_so_far, combined_digest
from pipeline.job import EncodeJob, LatentScale
from pipeline.job_plan import JobPlan, Reason, Wanted
from pipeline.leaving import leaving_sources
from pipeline.plan import plan_job
from pipeline.precision import precisions
from pipeline.recipes import Encoders, encode_versions, require_fitting
from pipeline.run import Engine, JobResult, Outcome, run_tasks
from pipeline.settings import IngestSettings, Precision
from pipeline.source_rows import source_row
from pipeline.sources import HashedSource, UnreadableSource
from pipeline.stages import ClipRejected, SourceFinished
from pipeline.tasks import Tasks

Purpose = Literal["ingest", "refresh"]
_UNITS: Mapping[Purpose, str] = {"ingest": "sources", "refresh": "tasks"}
"""What progress counts: a refresh works on clips of the cache too."""

TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 3e-2}
"""Relative L2 distance within which another device must come; float16 itself rounds by 5e-4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedJob:
    """Everything that is known before the work begins."""

    layout: CacheLayout
    settings: IngestSettings
    encoders: Encoders
    wanted: Wanted
    snapshot: Snapshot
    sources: tuple[HashedSource | UnreadableSource, ...]
    plan: JobPlan
    prunes: bool
    planned_current: Ref | None
    """What ``refs/current`` was when it was planned."""
    may_replace: bool
    """It may put other recipes in the place of the current ones."""
    moves_current: bool
    """A part of a job leaves the ref alone: only the whole of it is complete."""


def plan_for(
    sources: Sequence[HashedSource | UnreadableSource],
    *,
    layout: CacheLayout,
    settings: IngestSettings,
    encoders: Encoders,
    wanted: Wanted,
    snapshot: Snapshot,
    prune: bool,
    is_part: bool,
    planned_current: Ref | None,
    may_replace: bool,
) -> PlannedJob:
    """The plan for some sources, as a job that can be carried out.

    Raises:
        ConfigError: The modal encoders cannot read windows of these settings.
    """
    if encoders.modal is not None and not wanted.recipes.keys().isdisjoint(LEVELS["perceptual"]):
        require_fitting(settings, encoders.modal)
    return PlannedJob(
        layout=layout,
        settings=settings,
        encoders=encoders,
        wanted=wanted,
        snapshot=snapshot,
        sources=tuple(sources),
        plan=plan_job(
            sources,
            snapshot,
            wanted,
            # Asked for each source, and answered from files.
            reason_for=cache(lambda field, digest: _reason(layout, wanted.recipes[field], digest)),
            prune=prune,
        ),
        prunes=prune,
        planned_current=planned_current,
        may_replace=may_replace,
        moves_current=not is_part,
    )


def carry_out(
    job: PlannedJob, *, engine: Engine, device: str, purpose: Purpose, started: float
) -> JobResult:
    """Does what was planned; ``refs/current`` moves when all is done.

    Raises:
        InterruptedJobError: Ctrl-C or SIGTERM; what was finished is committed.
        JobError: Any other fault that is not a source's.
    """
    layout, plan, wanted = job.layout, job.plan, job.wanted
    work = _encode_job(job, device)
    require_calibration(work, layout)
    make_missing_checkpoints(layout, job.snapshot.commit)
    write_recipes(layout, wanted.recipes.values())
    committer = _open_committer(job, purpose)
    for noted in plan.source_rows:
        committer.add_source(noted)
    for annotation in plan.annotation_rows:
        committer.add_annotation(annotation)
    for unreadable in plan.quarantine_rows:
        committer.add_quarantine(unreadable)
    by_digest: dict[str, list[HashedSource]] = {}
    for source in job.sources:
        if isinstance(source, HashedSource):
            by_digest.setdefault(source.digest, []).append(source)

    def on_finished(event: SourceFinished) -> None:
        # The end of a clip from the cache says nothing of how many its source has.
        if isinstance(event.task, SourceTask):
            for one in by_digest[event.task.digest]:
                row = source_row(one, wanted.segmentation, event.num_segments)
                committer.add_source(row)

    rejections = _Rejections(job)
    outcome = run_tasks(
        work,
        Tasks(plan, job.snapshot, wanted),
        engine=engine,
        committer=committer,
        to_quarantine=rejections.row,
        on_finished=on_finished,
        in_two_parts=plan.in_two_parts,
        purpose=purpose,
        unit=_UNITS[purpose],
    )
    num_left = _let_go(job, committer)
    current = _current_ref(job, rejections.unread)
    commit = (
        current.move(has_made=bool(outcome.accepted))
        if job.moves_current
        else CommitLog(layout, seen=job.snapshot.commit).head()
    )
    return JobResult(
        num_sources=plan.num_sources,
        num_already_present=plan.num_present,
        num_clips_encoded=outcome.tally.num_clips,
        num_kl_images=outcome.tally.num_images,
        num_videos_opened=outcome.num_videos_opened,
        num_quarantined=outcome.tally.num_failures
        + plan.num_quarantined
        + len(plan.quarantine_rows),
        num_sources_with_rows=_num_with_rows(job, outcome, by_digest),
        num_dropped=plan.num_dropped,
        num_dropped_clips=plan.num_dropped_clips,
        num_clips_left=num_left,
        commit=commit,
        current_stays=current.why_not,
        seconds=time.monotonic() - started,
        num_windows_encoded=outcome.tally.num_windows,
        causes=dict(outcome.causes.most_common()),
        busy_shares=outcome.busy_shares,
    )


def _open_committer(job: PlannedJob, purpose: Purpose) -> Committer:
    run = job.settings.run
    write_shard = shard_writer_of(run.store)
    precision = precisions(job.settings)
    return Committer(
        job.layout,
        recipes=job.wanted.recipes,
        seen=job.snapshot.commit,
        present=_present(job),
        open_shard=lambda: write_shard(job.layout.storage),
        shard_bytes=run.shard_bytes,
        commit_seconds=run.commit_seconds,
        versions=encode_versions(),
        tolerances={
            "clip": 0.0,
            "kl": TOLERANCES[precision.kl],
            "perceptual": TOLERANCES[precision.modal],
        },
        run={
            "command": purpose,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _present(job: PlannedJob) -> set[tuple[str, str]]:
    """Recipe and clip of the wanted rows there are of sources that are decoded again."""
    index = job.snapshot.index
    digests = pa.array([task.digest for task in job.plan.to_decode], pa.string())
    recipes = pa.array(list(job.wanted.digests.values()), pa.string())
    rows = index.filter(pc.is_in(index["source"], value_set=digests))
    rows = rows.filter(pc.is_in(rows["recipe"], value_set=recipes))
    return set(zip(rows["recipe"].to_pylist(), rows["clip"].to_pylist(), strict=True))


def _encode_job(job: PlannedJob, device: str) -> EncodeJob:
    computed: set[str] = set()
    for work in job.plan.cached:
        computed.update(to_compute(work.make, work.read))
    for task in job.plan.to_decode:
        computed.update(to_compute(task.fields, ("clip.video", "clip.audio")))
    return encode_job(
        job.settings,
        job.encoders,
        computed=frozenset(computed),
        device=device,
        cache_url=job.layout.url,
    )


def encode_job(
    settings: IngestSettings,
    encoders: Encoders,
    *,
    computed: frozenset[str],
    device: str,
    cache_url: str,
) -> EncodeJob:
    """What workers must know to compute some fields."""
    modal = encoders.modal
    return EncodeJob(
        settings=settings,
        computed=computed,
        device=device,
        cache_url=cache_url,
        kl_vae=encoders.kl_vae.weights_digest,
        latent_scale=LatentScale(
            factor=encoders.kl_vae.scaling_factor, shift=encoders.kl_vae.shift_factor
        ),
        modal_encoders=(modal.video.weights_digest, modal.audio.weights_digest) if modal else None,
    )


class _Rejections:
    """Makes the quarantine rows of a run."""

    def __init__(self, job: PlannedJob) -> None:
        self._wanted = job.wanted
        self._attempts = attempts_so_far(job.snapshot)
        self.unread: set[str] = set()
        """URIs of sources that were there when they were hashed, and could not be read."""

    def row(self, event: ClipRejected) -> QuarantineRow:
        """The row of a clip or source that was given up."""
        wanted = self._wanted
        if event.stage == "read":
            self.unread.add(event.task.uri)
        question, versions = (
            (combined_digest(wanted.digests.values()), wanted.encode_versions)
            if event.stage == "encode"
            else (wanted.admission, wanted.decode_versions)
        )
        return QuarantineRow(
            event="rejected",
            source=event.task.uri,
            source_digest=event.task.digest,
            segment=event.segment,
            stage=event.stage,
            recipe=question,
            error_class=type(event.error).__name__,
            message=event.error.reason,
            attempts=1 + self._attempts[event.task.digest, event.segment],
            versions=versions,
        )


def _let_go(job: PlannedJob, committer: Committer) -> int:
    """Commits what leaves, after everything new is in; returns how many clips that was.

    Whatever other drivers committed meanwhile is looked at again, so that nothing leaves that has
    come back.
    """
    if not job.plan.tombstones:
        return 0
    now = load_snapshot(job.layout)
    readable = [source for source in job.sources if isinstance(source, HashedSource)]
    others = {s.source.uri for s in job.sources if isinstance(s, UnreadableSource)}
    still_leaving, _ = leaving_sources(now, readable, others, prune=job.prunes)
    planned = set(job.plan.tombstones)
    tombstones: list[TombstoneRow] = [row for row in still_leaving if row in planned]
    for row in tombstones:
        committer.add_tombstone(row)
    committer.flush()
    ended = pa.array([row.source for row in tombstones if row.source], pa.string())
    rows = now.index.filter(pc.is_in(now.index["source"], value_set=ended))
    return len(pc.unique(rows["clip"].cast(pa.string())))


def _current_ref(job: PlannedJob, unread: Set[str]) -> CurrentRef:
    unreadable = {s.source.uri for s in job.sources if isinstance(s, UnreadableSource)}
    return CurrentRef(
        job.layout,
        job.wanted,
        job.snapshot,
        planned=job.planned_current,
        uris=frozenset(source.source.uri for source in job.sources),
        unread=frozenset(unread | unreadable),
        may_replace=job.may_replace,
    )


def _num_with_rows(
    job: PlannedJob, outcome: Outcome, by_digest: Mapping[str, Sequence[HashedSource]]
) -> int:
    index = job.snapshot.index
    asked = pa.array(list(by_digest), pa.string())
    known = pc.unique(index["source"].cast(pa.string()))
    with_rows = pc.is_in(asked, value_set=known).to_pylist()
    return sum(
        has_rows or digest in outcome.accepted
        for digest, has_rows in zip(by_digest, with_rows, strict=True)
    )


def _reason(layout: CacheLayout, wanted: Recipe, found: str) -> Reason:
    """Why latents of another recipe do not do: another encoder, or other settings."""
    differences = recipe_differences(read_recipe(layout, found), wanted)
    parts = {difference.partition(":")[0].split()[1] for difference in differences}
    return "new encoder" if parts & {"kl_vae", "encoder"} else "new settings"


def levels_of(recipes: Mapping[str, str]) -> tuple[Level, ...]:
    """The levels whose fields these are, in order."""
    return tuple(dict.fromkeys(FIELDS[field].level for field in FIELDS if field in recipes))
