"""Several caches or packs trained on together, some of them oftener than others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from latents.cache.concatenated import ConcatenatedWindows
from latents.cache.mixed_order import MixedOrder
from latents.cache.source_split import SPLITS, Split
from latents.cache.windows import Windows
from latents.errors import CacheError, ConfigError
from latents.whitening import ClipSums
from training.dit.chosen_caches import ChosenCache
from training.dit.files import TrainedOn
from training.dit.source import Reading, TrainingSource, open_source, why_no_window


class MixedSource:
    """Windows of several sources, those of weight w trained on w times as often as of weight 1.

    Validation windows are those of all, whatever the weights. Whitening is by the clips of all,
    each once, however many sources have it: a weight says how often a window is seen and not what
    a latent means, so latents mean the same to models that were trained with other weights.

    Args:
        sources: In the order in which their windows are numbered.
        weights: Of each; see `latents.cache.mixed_order.MixedOrder`.

    Raises:
        CacheError: One of them has nothing to train on.
        ConfigError: One is there twice, latents were made by different recipes, or what is held
            out of one is trained on in another.
    """

    def __init__(self, sources: Sequence[TrainingSource], *, weights: Sequence[float]) -> None:
        self._sources, self._weights = tuple(sources), tuple(weights)
        self._names = tuple(_name(source) for source in sources)
        _require_named_once(self._names)
        _require_same_recipes(self._sources, self._names)
        _require_windows(self._sources, self._names)
        _require_same_splits(self._sources, self._names)
        self.num_clips = sum(source.num_clips for source in sources)
        self.trained_on = TrainedOn(
            caches=tuple(
                replace(cache, weight=weight)
                for source, weight in zip(sources, weights, strict=True)
                for cache in source.trained_on.caches
            ),
            recipes=sources[0].trained_on.recipes,
        )

    def pinned(self) -> dict[str, Any]:
        """What a resumed run must find again, as JSON: of each cache, and their order."""
        pinned: dict[str, Any] = {"recipes": self.trained_on.recipe_digests}
        for number, cache in enumerate(self.trained_on.caches, start=1):
            pinned[str(number)] = {"commit": cache.commit, "weight": cache.weight}
        return pinned

    def order(self, seed: int) -> MixedOrder:
        """In which the training windows are seen."""
        counts = tuple(source.num_windows("train") for source in self._sources)
        return MixedOrder(source_windows=counts, weights=self._weights, seed=seed)

    def num_windows(self, split: Split) -> int:
        """Of a split."""
        return sum(source.num_windows(split) for source in self._sources)

    def sources(self, split: Split) -> list[str]:
        """SHA-256 of the source of each clip of a split, in hex."""
        return [digest for source in self._sources for digest in source.sources(split)]

    def sums(self, split: Split, field: str) -> Iterator[ClipSums]:
        """What whitening needs of the clips of a split: each clip once, whatever its weight."""
        seen = set()
        for source in self._sources:
            for row in source.sums(split, field):
                if row.clip not in seen:
                    seen.add(row.clip)
                    yield row

    def windows(self, split: Split) -> Windows:
        """The windows of a split that has some, source after source."""
        named = [
            (name, source.windows(split))
            for name, source in zip(self._names, self._sources, strict=True)
            if source.num_windows(split)
        ]
        return ConcatenatedWindows(
            [windows for _, windows in named], names=[name for name, _ in named]
        )


def open_sources(
    chosen: Sequence[ChosenCache],
    *,
    validation_share: float,
    reading: Reading = "resident",
    audible_from_dbfs: float = -math.inf,
) -> TrainingSource:
    """Opens one cache or pack, or several to be trained on together.

    Args:
        chosen: At least one; a single one of weight 1.
        validation_share: Share of the sources that is held out, where people named no split.
        reading: How windows of caches are read.
        audible_from_dbfs: Clips with quieter sound are left out of all splits.

    Raises:
        CacheError: As `open_source`.
        ConfigError: As `open_source` and `MixedSource`, or a single cache has another weight.
    """
    if len(chosen) == 1 and chosen[0].weight != 1:
        weight = f"{chosen[0].weight:g}"
        raise ConfigError(
            f"{chosen[0].cache} has weight {weight}, which means something only beside another "
            f"cache; leave ={weight} out, or write =1 behind it where it is part of the name"
        )
    opened = [
        open_source(
            one.cache,
            ref=one.ref,
            validation_share=validation_share,
            reading=reading,
            audible_from_dbfs=audible_from_dbfs,
        )
        for one in chosen
    ]
    if len(opened) == 1:
        return opened[0]
    return MixedSource(opened, weights=[one.weight for one in chosen])


def _name(source: TrainingSource) -> str:
    """What errors call it. A cache may be there twice, with two of its snapshots."""
    return ", ".join(f"{one.cache} (commit {one.commit})" for one in source.trained_on.caches)


def _require_named_once(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{name} is named {names.count(name)} times; name it once, with a weight: "
                "--cache C=2"
            )


def _require_same_recipes(sources: Sequence[TrainingSource], names: Sequence[str]) -> None:
    wanted = sources[0].trained_on.recipe_digests
    for name, source in zip(names, sources, strict=True):
        found = source.trained_on.recipe_digests
        differing = sorted(f for f in found.keys() | wanted.keys() if found.get(f) != wanted.get(f))
        if differing:
            field = differing[0]
            raise ConfigError(
                f"{field} of {name} was made by recipe {found.get(field, 'none')[:16]}, that of "
                f"{names[0]} by {wanted.get(field, 'none')[:16]}: one model cannot train on "
                "both. Bring one of them to the encoders and settings of the other by `mmldm "
                "refresh --cache C --autoencoder A`, or leave it out"
            )


def _require_windows(sources: Sequence[TrainingSource], names: Sequence[str]) -> None:
    for name, source in zip(names, sources, strict=True):
        if not source.num_windows("train"):
            raise CacheError(
                f"{name} has no window to train on: {why_no_window(source)}; or leave it out"
            )


def _require_same_splits(sources: Sequence[TrainingSource], names: Sequence[str]) -> None:
    """Refuses to train on what another of the caches holds out."""
    found: dict[str, tuple[Split, str]] = {}
    for name, source in zip(names, sources, strict=True):
        for split in SPLITS:
            for digest in sorted(set(source.sources(split))):
                first_split, first = found.setdefault(digest, (split, name))
                if first_split != split:
                    raise ConfigError(
                        f"source {digest[:16]} belongs to split {split} in {name}, but to "
                        f"{first_split} in {first}: it would be trained on and held out. Ingest "
                        "it again into one of them with the split of the other, or leave one out"
                    )
