"""Which sources are trained on and which are held out: never decided by clip or window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from latents.cache.snapshot import Snapshot
from latents.errors import CacheError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(source: str, annotated: str | None, *, validation_share: float) -> Split:
    """The split of a source.

    Args:
        source: SHA-256 of its bytes, in hex.
        annotated: What people say, which counts; None where they say nothing.
        validation_share: Of the others, the share that is held out. Which these are depends on
            the source alone, so that more sources move none of those that are there.
    """
    if annotated is not None:
        for split in SPLITS:
            if annotated == split:
                return split
        raise CacheError(
            f"source {source[:16]} is annotated with split {annotated!r}; wanted one of "
            f"{', '.join(SPLITS)}. Ingest it again with another annotation"
        )
    return "validation" if int(source[:13], 16) < validation_share * 16**13 else "train"


def annotated_splits(snapshot: Snapshot) -> Mapping[str, str]:
    """Splits that people named, by source."""
    rows = snapshot.annotations
    pairs = zip(rows["source"].to_pylist(), rows["split"].to_pylist(), strict=True)
    return {source: split for source, split in pairs if split is not None}
