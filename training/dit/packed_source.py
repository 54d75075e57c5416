"""The windows of a pack, by split. Needs none of the packages that read a cache's log."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from latents.cache.order import TrainingOrder
from latents.cache.pack import open_pack
from latents.cache.source_split import Split
from latents.cache.windows import Windows
from latents.errors import ConfigError
from latents.whitening import ClipSums
from training.dit.files import TrainedCache, TrainedOn


class PackedSource:
    """A pack; see `training.dit.source.TrainingSource`.

    Args:
        path: Its file.
        ref: ``current``, or the ref that it was exported from.
        validation_share: Share of the sources that is held out, where people named no split.
        audible_from_dbfs: Clips with quieter sound are left out of all splits.

    Raises:
        CacheError: The file is no whole pack.
        ConfigError: It is of another ref.
    """

    def __init__(
        self, path: Path, *, ref: str, validation_share: float, audible_from_dbfs: float = -math.inf
    ) -> None:
        pack = open_pack(path)
        if ref not in ("current", pack.header.ref):
            raise ConfigError(
                f"{path} was exported from ref {pack.header.ref!r}, not from {ref!r}; leave --ref "
                "out, or export the other"
            )
        self.num_clips = pack.num_clips
        audible = pack.audible(from_dbfs=audible_from_dbfs)
        num_silent = pack.num_clips - audible.num_clips
        self.trained_on = TrainedOn(
            caches=(TrainedCache(cache=str(path), commit=pack.commit, num_silent=num_silent),),
            recipes=pack.recipes,
        )
        self._commit = pack.commit
        self._of_split = cache(partial(audible.of_split, validation_share=validation_share))

    def pinned(self) -> dict[str, Any]:
        """What a resumed run must find again, as JSON: the same as of its cache."""
        return {"commit": self._commit, "recipes": self.trained_on.recipe_digests}

    def order(self, seed: int) -> TrainingOrder:
        """In which the training windows are seen."""
        return TrainingOrder(num_windows=self.num_windows("train"), seed=seed)

    def num_windows(self, split: Split) -> int:
        """Of a split."""
        return self._of_split(split).num_windows

    def sources(self, split: Split) -> list[str]:
        """SHA-256 of the source of each clip of a split, in hex."""
        return self._of_split(split).sources()

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""
        return self._of_split(split).sums(field)

    def windows(self, split: Split) -> Windows:
        """The windows of a split, mapped from the file."""
        return self._of_split(split)
