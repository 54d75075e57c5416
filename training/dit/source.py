"""Where a run's windows come from: the perceptual level of a cache, or a pack of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

from latents.cache.pack_format import SUFFIX
from latents.cache.source_split import Split
from latents.cache.windows import Windows
from latents.whitening import ClipSums, whitening_of
from training.dit.batches import AUDIO, VIDEO, PairWhitening
from training.dit.files import TrainedOn
from training.dit.packed_source import PackedSource

Reading = Literal["resident", "streaming"]
"""Whether a cache's windows are read once, into memory, or each time, from their shards."""


class TrainingSource(Protocol):
    """Latents to train on, by split."""

    @property
    def trained_on(self) -> TrainedOn:
        """Which latents they are."""

    @property
    def num_clips(self) -> int:
        """Of all splits."""

    def num_windows(self, split: Split) -> int:
        """Of a split."""

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""

    def windows(self, split: Split) -> Windows:
        """The windows of a split that has some, in order of clip."""


def open_source(
    cache: str | Path, *, ref: str, validation_share: float, reading: Reading = "resident"
) -> TrainingSource:
    """Opens the perceptual level of a cache, or a pack.

    Args:
        cache: A folder or URL, or the ``.safetensors`` file of a pack.
        ref: Which snapshot of a cache; of a pack ``current``, or the one it was exported from.
        validation_share: Share of the sources that is held out, where people named no split.
        reading: How windows of a cache are read; a pack is mapped into memory.

    Raises:
        CacheError: There is no such cache, ref, level or pack.
        ConfigError: The pack is of another ref.
    """
    if str(cache).endswith(SUFFIX):
        return PackedSource(Path(cache), ref=ref, validation_share=validation_share)
    # Here, not at the top: a pack is read without the packages that a cache's log needs.
    from training.dit.cached_source import CachedSource

    return CachedSource(cache, ref=ref, validation_share=validation_share, reading=reading)


def pair_whitening(source: TrainingSource) -> PairWhitening:
    """The whitening of both latents over the training split, which must have windows."""
    return PairWhitening(
        video=whitening_of(source.sums("train", VIDEO)),
        audio=whitening_of(source.sums("train", AUDIO)),
    )
