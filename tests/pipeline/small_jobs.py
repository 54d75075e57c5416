"""Small jobs in process: short videos, tiny encoders, and what a run did as its cache shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latents.cache.commit import read_rows
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.refs import Ref, require_ref
from latents.cache.rows import RowKind
from latents.cache.snapshot import load_snapshot
from latents.config import load_config
from latents.fields import FIELDS, Level
from latents.models.encoder_blocks import draw_weights
from latents.models.identity_memo import kl_vae_identity, modal_identity
from latents.models.modal_encoder_config import AudioEncoderConfig, VideoEncoderConfig
from latents.models.modal_encoder_files import save_modal_encoders
from latents.models.modal_encoders import AudioEncoder, VideoEncoder
from pipeline.decode import DecodeEvent, SourceTask, decode_source
from pipeline.engine_local import LocalEngine
from pipeline.ingest import ingest, plan_ingest
from pipeline.job import EncodeJob, Task
from pipeline.planned_job import PlannedJob
from pipeline.recipes import Encoders
from pipeline.refresh import plan_refresh, refresh
from pipeline.run import Engine, JobResult
from pipeline.settings import AutoencoderSettings, IngestSettings
from pipeline.sources import Source, find_sources
from pipeline.stage_clock import StageTime
from pipeline.stages import StageEvent
from pipeline.stop_request import StopRequest

ALL_LEVELS: tuple[Level, ...] = ("clip", "kl", "perceptual")
BOTH: tuple[Level, ...] = ("kl", "perceptual")
NUM_SCENES = 4
SCENES = f"scenes:0:{NUM_SCENES}:2"
SMALL = ("clip.size=32", "window.stride=16", "run.workers=1", "run.device=cpu")


class DecodesInProcess:
    """Stands in for `IsolatedDecoder`, whose child takes longer to start than these jobs take."""

    def __init__(self, **_: object) -> None:
        pass

    def decode(self, task: SourceTask, **options: Any) -> Iterator[DecodeEvent]:
        return decode_source(task, **options)

    def close(self) -> None:
        pass


class WatchedEngine:
    """An engine that shows each event to someone before the committer gets it."""

    def __init__(self, look: Callable[[StageEvent], None]) -> None:
        self._look, self._engine = look, LocalEngine(num_workers=1)

    def start(self) -> None:
        pass

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent, None, None]:
        for event in self._engine.run(job, tasks, stop):
            if not isinstance(event, StageTime):
                self._look(event)
                yield event


def make_autoencoder(
    folder: Path,
    *,
    video_seed: int = 0,
    audio_seed: int = 0,
    frames: int = 16,
    latent_size: int = 4,
    others: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A folder with tiny modal encoders for KL latents of a size, and parts that are not read."""
    config = VideoEncoderConfig(
        in_size=latent_size,
        frames=frames,
        key_frames=(0, frames - 1),
        channels=4,
        num_res_blocks=1,
        attention_sizes=(),
        head_channels=4,
        norm_groups=4,
    )
    tiny = AudioEncoderConfig(
        channels=4,
        multipliers=(1, 1, 1),
        num_res_blocks=1,
        attention_sizes=(),
        head_channels=4,
        norm_groups=4,
    )
    video, audio = VideoEncoder(config), AudioEncoder(tiny)
    draw_weights(video, key=f"{video_seed}/video", start="live")
    draw_weights(audio, key=f"{audio_seed}/audio", start="live")
    save_modal_encoders(folder, video, audio, others, extra_tables={"discriminator": {}})
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallJob:
    """What a small job makes, and with what."""

    kl_vae: Path
    autoencoder: Path | None = None
    levels: tuple[Level, ...] = ("kl",)
    overrides: tuple[str, ...] = ()

    @property
    def settings(self) -> IngestSettings:
        settings = load_config(IngestSettings, kind="ingest", overrides=(*SMALL, *self.overrides))
        return replace(
            settings,
            kl_vae=replace(settings.kl_vae, source=str(self.kl_vae)),
            autoencoder=AutoencoderSettings(source=str(self.autoencoder or "")),
        )

    @property
    def encoders(self) -> Encoders:
        return Encoders(
            kl_vae=kl_vae_identity(str(self.kl_vae)),
            modal=modal_identity(self.autoencoder) if self.autoencoder else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a run was planned to do, and what it did."""

    planned: PlannedJob
    result: JobResult
    made: Mapping[str, int]
    """Latents rows that were committed, by field."""
    left: tuple[str, ...]
    """Reason and name of each tombstone that was committed."""
    rows: Mapping[RowKind, list[dict[str, Any]]]
    """All rows that were committed."""


class SmallCache:
    """A cache, and jobs on it of which each is planned, run, compared and planned again."""

    def __init__(self, root: Path, engine: Engine | None = None) -> None:
        self.layout: CacheLayout = create_cache(root)
        self._engine = engine or LocalEngine(num_workers=1)

    def ingest(self, job: SmallJob, *arguments: str, **options: Any) -> Done:
        """Ingests what the arguments of the command name."""
        sources = find_sources(arguments)
        given = self._given(job)
        planned = plan_ingest(sources, **given, **options)
        return self._do(
            planned,
            lambda: ingest(sources, **given, **options, engine=self._engine, device="cpu"),
            lambda: plan_ingest(sources, **given, **options),
        )

    def refresh(
        self, job: SmallJob, sources: Sequence[Source] | None = None, **options: Any
    ) -> Done:
        """Refreshes these sources, or all on record."""
        given = self._given(job)
        return self._do(
            plan_refresh(sources, **given, **options),
            lambda: refresh(sources, **given, **options, engine=self._engine, device="cpu"),
            lambda: plan_refresh(sources, **given, **options),
        )

    def run(self, job: SmallJob, *arguments: str, **options: Any) -> JobResult:
        """Ingests what the arguments name, or refreshes; what is planned is not compared."""
        given = self._given(job) | options | {"engine": self._engine, "device": "cpu"}
        return ingest(find_sources(arguments), **given) if arguments else refresh(None, **given)

    def plan(self, job: SmallJob, sources: Sequence[Source] | None = None) -> PlannedJob:
        """The plan of a refresh."""
        return plan_refresh(sources, **self._given(job))

    def ref(self, name: str) -> Ref:
        """A ref that there is."""
        return require_ref(self.layout, name)

    def level(self, level: Level = "perceptual") -> CachedLevel:
        """What a reader finds now."""
        return open_cache(self.layout.url, level=level)

    def committed(self, since: int) -> dict[RowKind, list[dict[str, Any]]]:
        """All rows of the commits after one."""
        found: dict[RowKind, list[dict[str, Any]]] = {}
        log = CommitLog(self.layout)
        for commit in log.commits(since + 1, log.head()):
            for kind, file in commit.files.items():
                rows = read_rows(self.layout, kind, file).to_pylist()
                found.setdefault(kind, []).extend(rows)
        return found

    def _given(self, job: SmallJob) -> dict[str, Any]:
        return {
            "layout": self.layout,
            "settings": job.settings,
            "encoders": job.encoders,
            "levels": job.levels,
        }

    def _do(
        self, planned: PlannedJob, run: Callable[[], JobResult], plan: Callable[[], PlannedJob]
    ) -> Done:
        head = CommitLog(self.layout).head()
        result = run()
        rows = self.committed(head)
        made = Counter(row["field"] for row in rows.get("latents", ()))
        tombstones = rows.get("tombstones", ())
        done = Done(
            planned=planned,
            result=result,
            made={field: made[field] for field in FIELDS if made[field]},
            left=tuple(f"{row['reason']} {row['uri'] or row['source']}" for row in tombstones),
            rows=rows,
        )
        _require_as_planned(done)
        _require_nothing_to_do(plan())
        return done


def _require_as_planned(done: Done) -> None:
    """The run did what its plan said: no row, video or tombstone more or less.

    Where a clip is rejected there are fewer, and how many a source gives is known once it was cut.
    """
    plan, digests = done.planned.plan, done.planned.wanted.digests
    if done.result.num_quarantined == 0:
        for field, one in plan.fields.items():
            uncut = done.made.get(field, 0) - sum(one.to_encode.values())
            assert (uncut >= sum(one.num_uncut.values())) if one.num_uncut else (uncut == 0)
        assert done.result.num_clips_encoded == max(done.made.values(), default=0)
    assert all(row["recipe"] == digests[row["field"]] for row in done.rows.get("latents", ()))
    to_open = [task for task in plan.to_decode if task.path is not None]
    assert done.result.num_videos_opened == len(to_open)
    assert len(done.rows.get("tombstones", ())) == len(plan.tombstones)
    assert done.result.num_clips_left == max(
        (one.num_leaving for one in plan.fields.values()), default=0
    )
    assert len(done.rows.get("annotations", ())) == len(plan.annotation_rows)


def _require_nothing_to_do(planned: PlannedJob) -> None:
    plan = planned.plan
    assert (plan.to_decode, plan.cached, plan.tombstones) == ((), (), ())
    assert (plan.source_rows, plan.annotation_rows, plan.quarantine_rows) == ((), (), ())
    assert not any(one.to_encode or one.num_uncut for one in plan.fields.values())


def num_rows(cache: SmallCache) -> Mapping[str, int]:
    """Latents rows that are alive, by recipe."""
    return Counter(load_snapshot(cache.layout).index["recipe"].to_pylist())
