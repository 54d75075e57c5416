"""The windows of a pack, by split. Needs none of the packages that read a cache's log."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

from latents.cache.pack import open_pack
from latents.cache.source_split import Split
from latents.cache.windows import Windows
from latents.errors import ConfigError
from latents.whitening import ClipSums
from training.dit.files import TrainedOn


class PackedSource:
    """A pack; see `training.dit.source.TrainingSource`.

    Args:
        path: Its file.
        ref: ``current``, or the ref that it was exported from.
        validation_share: Share of the sources that is held out, where people named no split.

    Raises:
        CacheError: The file is no whole pack.
        ConfigError: It is of another ref.
    """

    def __init__(self, path: Path, *, ref: str, validation_share: float) -> None:
        pack = open_pack(path)
        if ref not in ("current", pack.header.ref):
            raise ConfigError(
                f"{path} was exported from ref {pack.header.ref!r}, not from {ref!r}; leave --ref "
                "out, or export the other"
            )
        self.num_clips = pack.num_clips
        self.trained_on = TrainedOn(cache=str(path), commit=pack.commit, recipes=pack.recipes)
        self._of_split = cache(partial(pack.of_split, validation_share=validation_share))

    def num_windows(self, split: Split) -> int:
        """Of a split."""
        return self._of_split(split).num_windows

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""
        return self._of_split(split).sums(field)

    def windows(self, split: Split) -> Windows:
        """The windows of a split, mapped from the file."""
        return self._of_split(split)
