"""The windows of a cache's perceptual level, by split, in memory or read from their shards."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from latents.cache.reader import open_cache
from latents.cache.refs import read_recipe
from latents.cache.resident import ResidentWindows
from latents.cache.source_split import Split
from latents.cache.splits import clips_of_split
from latents.cache.streaming import StreamingWindows
from latents.cache.windows import Windows
from latents.whitening import ClipSums
from training.dit.files import TrainedOn
from training.dit.source import Reading


class CachedSource:
    """A level of a cache; see `training.dit.source.TrainingSource`.

    Args:
        cache: Folder or URL.
        ref: Which snapshot.
        validation_share: Share of the sources that is held out, where people named no split.
        reading: Whether windows are read once, into memory, or each time, from their shards.

    Raises:
        CacheError: There is no such cache, ref or level.
    """

    def __init__(
        self, cache: str | Path, *, ref: str, validation_share: float, reading: Reading
    ) -> None:
        self._reading = reading
        self._level = level = open_cache(cache, level="perceptual", ref=ref)
        self.num_clips = len(level)
        self.trained_on = TrainedOn(
            cache=level.layout.url,
            commit=level.commit,
            recipes={f: read_recipe(level.layout, one) for f, one in level.recipes.items()},
        )
        self._clips = functools.cache(
            functools.partial(clips_of_split, level, validation_share=validation_share)
        )

    def num_windows(self, split: Split) -> int:
        """Of a split."""
        return self._clips(split).num_windows

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""
        return (clip.rows[field] for clip in self._clips(split))

    def windows(self, split: Split) -> Windows:
        """The windows of a split; what is read of them raises `DamagedError` where it must."""
        if self._reading == "streaming":
            return StreamingWindows(self._level, self._clips(split))
        return ResidentWindows(self._level, self._clips(split))
