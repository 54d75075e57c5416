"""Which sources are trained on and which are held out: never decided by clip or window."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

from latents.cache.reader import CachedLevel, ClipRows
from latents.errors import CacheError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def clips_of_split(level: CachedLevel, split: Split, *, validation_share: float) -> ClipRows:
    """The clips of a level whose source belongs to a split.

    Args:
        level: Opened.
        split: Which.
        validation_share: See `split_of`.

    Raises:
        CacheError: A source is annotated with a split that is none.
    """
    rows = level.annotations()
    annotated = dict(zip(rows["source"].to_pylist(), rows["split"].to_pylist(), strict=True))
    sources = level.clips.sources()
    is_wanted = {
        source: split_of(source, annotated.get(source), validation_share=validation_share) == split
        for source in sources.unique().to_pylist()
    }
    return level.clips.where(pa.array([is_wanted[source] for source in sources.to_pylist()]))


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
