"""Where a run's windows come from: the perceptual level of a cache, or a pack of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from latents.cache.batches import WindowOrder
from latents.cache.pack_format import SUFFIX
from latents.cache.source_split import Split
from latents.cache.windows import Windows
from latents.whitening import ClipSums, whitening_of
from training.dit.batches import AUDIO, VIDEO, PairWhitening
from training.dit.files import TrainedOn
from training.dit.packed_source import PackedSource

Reading = Literal["resident", "device", "streaming"]
"""Whether windows are read once, into memory or that of the accelerator, or each time."""


class TrainingSource(Protocol):
    """Latents to train on, by split."""

    @property
    def trained_on(self) -> TrainedOn:
        """Which latents they are."""

    @property
    def num_clips(self) -> int:
        """Of all splits."""

    def pinned(self) -> dict[str, Any]:
        """What a resumed run must find again, as JSON."""

    def order(self, seed: int) -> WindowOrder:
        """In which the training windows are seen."""

    def num_windows(self, split: Split) -> int:
        """Of a split."""

    def sources(self, split: Split) -> list[str]:
        """SHA-256 of the source of each clip of a split, in hex."""

    def sums(self, split: Split, field: str) -> Iterable[ClipSums]:
        """What whitening needs of the clips of a split."""

    def windows(self, split: Split) -> Windows:
        """The windows of a split that has some, in order of clip."""


def open_source(
    cache: str | Path,
    *,
    ref: str,
    validation_share: float,
    reading: Reading = "resident",
    audible_from_dbfs: float = -math.inf,
) -> TrainingSource:
    """Opens the perceptual level of a cache, or a pack.

    Args:
        cache: A folder or URL, or the ``.safetensors`` file of a pack.
        ref: Which snapshot of a cache; of a pack ``current``, or the one it was exported from.
        validation_share: Share of the sources that is held out, where people named no split.
        reading: How windows of a cache are read; a pack is mapped into memory.
        audible_from_dbfs: Clips with quieter sound are left out of all splits, as if they were not
            there; see `latents.cache.audible.audible_clips`.

    Raises:
        CacheError: There is no such cache, ref, level or pack.
        ConfigError: The pack is of another ref.
    """
    if str(cache).endswith(SUFFIX):
        return PackedSource(
            Path(cache),
            ref=ref,
            validation_share=validation_share,
            audible_from_dbfs=audible_from_dbfs,
        )
    # Here, not at the top: a pack is read without the packages that a cache's log needs.
    from training.dit.cached_source import CachedSource

    return CachedSource(
        cache,
        ref=ref,
        validation_share=validation_share,
        reading=reading,
        audible_from_dbfs=audible_from_dbfs,
    )


def why_no_window(source: TrainingSource) -> str:
    """Why a source has nothing to train on, and what to do about it."""
    num_silent = sum(cache.num_silent for cache in source.trained_on.caches)
    if not num_silent:
        return (
            f"its {source.num_clips} clips are all held out, or there are none. Ingest more, or "
            "lower data.validation_share"
        )
    return (
        f"its {source.num_clips} clips are silent ({num_silent}) or held out "
        f"({source.num_clips - num_silent}). Ingest more, or say data.silent=keep, or lower "
        "data.silent_below_dbfs or data.validation_share"
    )


def pair_whitening(source: TrainingSource) -> PairWhitening:
    """The whitening of both latents over the training split, which must have windows."""
    return PairWhitening(
        video=whitening_of(source.sums("train", VIDEO)),
        audio=whitening_of(source.sums("train", AUDIO)),
    )
