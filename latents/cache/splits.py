"""Which sources are trained on and which are held out: never decided by clip or window."""

from __future__ import annotations

import pyarrow as pa

from latents.cache.reader import CachedLevel, ClipRows
from latents.cache.source_split import Split, split_of


def share_held_out(level: CachedLevel, wanted: float) -> float:
    """The share of a level's sources to hold out: none where no window would be left to train on.

    Args:
        level: Opened.
        wanted: Of the sources where people named no split.
    """
    left = clips_of_split(level, "train", validation_share=wanted)
    return wanted if left.num_windows else 0.0


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
    # The type is named, as it cannot be told where there are no clips.
    wanted = pa.array([is_wanted[source] for source in sources.to_pylist()], pa.bool_())
    return level.clips.where(wanted)
