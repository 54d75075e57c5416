"""A log in memory and plans on it, without a cache, a video or an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from latents.cache.checkpoint import INDEX_SCHEMA, index_of, schema_of
from latents.cache.liveness import living
from latents.cache.rows import (
    AnnotationRow,
    LatentRow,
    QuarantineRow,
    Row,
    RowKind,
    SourceRow,
    TombstoneRow,
    rows_to_table,
    with_commit,
)
from latents.cache.snapshot import Snapshot
from latents.clip import ClipKey
from latents.config import load_config
from latents.fields import Level
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae import EncoderIdentity
from latents.recipe import sha256_hex
from pipeline.ingest import wanted_for
from pipeline.job_plan import JobPlan, Reason, Wanted
from pipeline.plan import plan_job
from pipeline.recipes import Encoders, wanted_recipes
from pipeline.settings import IngestSettings
from pipeline.sources import Annotation, HashedSource, Source, UnreadableSource

_KINDS: Mapping[type, RowKind] = {
    LatentRow: "latents",
    SourceRow: "sources",
    QuarantineRow: "quarantine",
    AnnotationRow: "annotations",
    TombstoneRow: "tombstones",
}
_BLANK: dict[str, Any] = dict.fromkeys(LatentRow.__dataclass_fields__)


class MadeUpLog:
    """Commits of rows, and the snapshot at the last of them."""

    def __init__(self, *commits: Sequence[Row]) -> None:
        self._tables: dict[RowKind, list[pa.Table]] = {kind: [] for kind in _KINDS.values()}
        self._num_commits = 0
        for rows in commits:
            self.commit(*rows)

    def commit(self, *rows: Row) -> None:
        """Adds rows of any kinds as one commit."""
        by_kind: dict[RowKind, list[Row]] = {}
        for row in rows:
            by_kind.setdefault(_KINDS[type(row)], []).append(row)
        for kind, of_kind in by_kind.items():
            table = with_commit(rows_to_table(kind, of_kind), self._num_commits)
            self._tables[kind].append(index_of(table) if kind == "latents" else table)
        self._num_commits += 1

    def snapshot(self) -> Snapshot:
        """What `load_snapshot` gives, less the latents rows as a whole, which no plan reads."""
        return Snapshot(
            commit=self._num_commits - 1,
            index=living(self._all("latents"), self._all("tombstones")),
            tombstones=self._all("tombstones"),
            latents_files=(),
            read_all=self._all,
        )

    def _all(self, kind: RowKind) -> pa.Table:
        schema = INDEX_SCHEMA if kind == "latents" else schema_of(kind)
        return pa.concat_tables([schema.empty_table(), *self._tables[kind]])


def wanted(
    *overrides: str,
    levels: tuple[Level, ...] = ("kl",),
    kl_vae: str = "k",
    video: str = "v",
    audio: str = "a",
) -> Wanted:
    """What settings and encoders of these weights ask for, under made-up versions."""
    settings = load_config(IngestSettings, kind="ingest", overrides=overrides)
    encoders = Encoders(
        kl_vae=EncoderIdentity(
            config={}, scaling_factor=1.0, shift_factor=0.0, weights_digest=kl_vae
        ),
        modal=ModalIdentity(
            video=ModalEncoderIdentity(config={}, weights_digest=video),
            audio=ModalEncoderIdentity(config={}, weights_digest=audio),
        ),
    )
    asked = wanted_for(settings, wanted_recipes(settings, encoders, levels))
    return replace(asked, decode_versions="av 1", encode_versions="torch 1")


def plan(
    sources: Sequence[HashedSource | UnreadableSource],
    log: MadeUpLog,
    asked: Wanted,
    *,
    reasons: Mapping[str, Reason] | None = None,
    prune: bool = False,
) -> JobPlan:
    """The plan, where latents of other recipes are so for reasons given by digest."""

    def reason_for(field: str, digest: str) -> Reason:
        return (reasons or {}).get(digest, "new settings")

    return plan_job(sources, log.snapshot(), asked, reason_for=reason_for, prune=prune)


def digest_of(content: str) -> str:
    """SHA-256 of the bytes that stand for a video."""
    return sha256_hex(content.encode())


def hashed(name: str, content: str, annotation: Annotation | None = None) -> HashedSource:
    """A file with some content, as it was found."""
    return HashedSource(
        source=_source(name, annotation), size=10, mtime_ns=1, digest=digest_of(content)
    )


def unreadable(name: str, reason: str = "it is gone") -> UnreadableSource:
    """A file that could not be read."""
    return UnreadableSource(source=_source(name), reason=reason)


def _source(name: str, annotation: Annotation | None = None) -> Source:
    path = Path("/videos") / name
    return Source(uri=str(path), path=path, scene=None, annotation=annotation)


def on_record(name: str, content: str, num_segments: int, asked: Wanted) -> SourceRow:
    """The record of a file that was cut into segments."""
    return SourceRow(
        uri=f"/videos/{name}",
        size=10,
        mtime_ns=1,
        etag="",
        digest=digest_of(content),
        segmentation=asked.segmentation,
        num_segments=num_segments,
    )


def clip_key(content: str, segment: int, asked: Wanted) -> str:
    """The key of a segment's clip."""
    start, fps = segment * asked.clip.segment_frames, asked.clip.fps
    return str(ClipKey(source_digest=digest_of(content), start_frame=start, fps=fps))


def latents(content: str, segments: Sequence[int], asked: Wanted, *fields: str) -> list[LatentRow]:
    """Rows of some segments: of these fields, or else of all that is wanted."""
    return [
        latent(content, segment, asked, field)
        for segment in segments
        for field in fields or asked.recipes
    ]


def latent(content: str, segment: int, asked: Wanted, field: str) -> LatentRow:
    """The row of one field of one segment."""
    values = _BLANK | {
        "clip": clip_key(content, segment, asked),
        "field": field,
        "recipe": asked.usable[field],
        "source": digest_of(content),
        "segment": segment,
        "start_frame": segment * asked.clip.segment_frames,
        "fps": asked.clip.fps,
        "shard": "s",
        "offset": 0,
        "dtype": "float16",
        "shape": [1],
        "digest": "d",
        "crc32c": [0],
        "device": "cpu",
        "versions": "",
        "encode_seconds": 0.0,
        "tolerance": 0.0,
    }
    return LatentRow(**values)


def given_up(
    content: str, segment: int | None, asked: Wanted, *, stage: str = "decode"
) -> QuarantineRow:
    """The event of a segment, or of a whole source (None), that a stage gave up."""
    decoding = asked.admission, asked.decode_versions
    encoding = "+".join(sorted(asked.digests.values())), asked.encode_versions
    recipe, versions = encoding if stage == "encode" else decoding
    return QuarantineRow(
        event="rejected",
        source=f"/videos/{content}",
        source_digest=digest_of(content),
        segment=segment,
        stage=stage,
        recipe=recipe,
        error_class="DecodeError",
        message="broken",
        attempts=1,
        versions=versions,
    )
