"""What a run wants, and what its plan says: the values that planning takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from latents.cache.rows import AnnotationRow, QuarantineRow, SourceRow, TombstoneRow
from latents.clip import ClipSpec
from latents.recipe import Recipe
from pipeline.decode import SourceTask

Reason = Literal[
    "new source", "changed bytes", "new encoder", "new settings", "new level", "unfinished",
    "retried", "readmitted",
]  # fmt: skip
"""Why a field is to be made: a source that was never here; one whose file has other bytes now;
another encoder or other settings than those of the rows there are; a level that was not made
before; an interrupted run; a quarantine that was lifted; a removal that was revoked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a run is to make."""

    recipes: Mapping[str, Recipe]
    """Of each field."""
    clip: ClipSpec
    segmentation: str
    admission: str
    """What decides whether decoding accepts a clip: digest of the cut and window, ``+``, digest
    of the sound policy."""
    decode_versions: str
    encode_versions: str
    keeps_verdicts: bool = False
    """What decoding rejected under another sound policy stays rejected."""

    @property
    def digests(self) -> dict[str, str]:
        """Recipe of each wanted field."""
        return {field: recipe.digest for field, recipe in self.recipes.items()}

    @property
    def usable(self) -> dict[str, str]:
        """Recipe of each field that the wanted ones may be made from, and of themselves."""
        return {
            part.field: part.digest
            for recipe in self.recipes.values()
            for part in recipe.with_ancestors()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedWork:
    """Clips to make from fields that the cache holds: all with the same fields in and out."""

    read: tuple[str, ...]
    make: tuple[str, ...]
    clips: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldPlan:
    """What happens to one field."""

    num_present: int
    """Clips of the sources asked for that have it already."""
    to_encode: Mapping[Reason, int]
    """Clips that get it, as far as sources have been cut into clips before."""
    num_uncut: Mapping[Reason, int]
    """Sources that were never cut, whose clips all get it."""
    num_leaving: int
    """Clips that lose it."""
    num_quarantined: int
    """Clips and sources that lack it because they were given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan:
    """What is left to do."""

    to_decode: tuple[SourceTask, ...]
    """Sources to decode; each content once."""
    cached: tuple[CachedWork, ...]
    in_two_parts: frozenset[str]
    """Clips of which some fields are made from the cache and the others from the source."""
    fields: Mapping[str, FieldPlan]
    source_rows: tuple[SourceRow, ...]
    """Sources whose content is in the cache under another name or time; only noted."""
    annotation_rows: tuple[AnnotationRow, ...]
    quarantine_rows: tuple[QuarantineRow, ...]
    """Sources whose bytes cannot be read."""
    tombstones: tuple[TombstoneRow, ...]
    """Sources and their clips that leave."""
    num_sources: int
    num_present: int
    """Sources for which nothing is left to do."""
    num_quarantined: int
    """Sources and segments given up before, under these settings and versions."""
    num_dropped: int
    """Sources that were taken down, and are passed over."""
    num_dropped_clips: int
    """Clips of the other sources that were taken down one by one."""

    @property
    def num_cached_clips(self) -> int:
        """Clips to make without opening a source."""
        return sum(len(work.clips) for work in self.cached)
