"""The windows of a cache's perceptual level, by split, in memory or read from their shards."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latents.cache.audible import audible_clips
from latents.cache.order import TrainingOrder
from latents.cache.reader import open_cache
from latents.cache.refs import read_recipe
from latents.cache.resident import ResidentWindows
from latents.cache.source_split import Split
from latents.cache.splits import clips_of_split
from latents.cache.streaming import StreamingWindows
from latents.cache.windows import Windows
from latents.whitening import ClipSums
from training.dit.files import TrainedCache, TrainedOn
from training.dit.source import Reading


class CachedSource:
    """A level of a cache; see `training.dit.source.TrainingSource`.

    Args:
        cache: Folder or URL.
        ref: Which snapshot.
        validation_share: Share of the sources that is held out, where people named no split.
        reading: ``resident`` reads windows once, into memory; else they come from their shards.
        audible_from_dbfs: Clips with quieter sound are left out of all splits.

    Raises:
        CacheError: There is no such cache, ref or level.
    """

    def __init__(
        self,
        cache: str | Path,
        *,
        ref: str,
        validation_share: float,
        reading: Reading,
        audible_from_dbfs: float = -math.inf,
    ) -> None:
        self._reading = reading
        self._level = level = open_cache(cache, level="perceptual", ref=ref)
        self.num_clips = len(level)
        level.clips = audible_clips(level.clips, level="perceptual", from_dbfs=audible_from_dbfs)
        num_silent = self.num_clips - len(level)
        self.trained_on = TrainedOn(
            caches=(
                TrainedCache(cache=level.layout.url, commit=level.commit, num_silent=num_silent),
            ),
            recipes={f: read_recipe(level.layout, one) for f, one in level.recipes.items()},
        )
        self._clips = functools.cache(
            functools.partial(clips_of_split, level, validation_share=validation_share)
        )

    def pinned(self) -> dict[str, Any]:
        """What a resumed run must find again, as JSON."""
        return {"commit": self._level.commit, "recipes": self.trained_on.recipe_digests}

    def order(self, seed: int) -> TrainingOrder:
        """In which the training windows are seen."""
        return TrainingOrder(num_windows=self.num_windows("train"), seed=seed)

    def num_windows(self, split: Split) -> int:
        """Of a split."""
        return self._clips(split).num_windows

    def sources(self, split: Split) -> list[str]:
        """SHA-256 of the source of each clip of a split, in hex."""
        sources: list[str] = self._clips(split).sources().to_pylist()
        return sources

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""
        return self._clips(split).sums(field)

    def windows(self, split: Split) -> Windows:
        """The windows of a split; what is read of them raises `DamagedError` where it must."""
        if self._reading == "resident":
            return ResidentWindows(self._level, self._clips(split))
        return StreamingWindows(self._level, self._clips(split))
