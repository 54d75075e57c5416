"""Which caches a run is to train on: what people write of them, read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latents.cache.mixed_order import require_weight
from latents.errors import ConfigError

_WEIGHTED = re.compile(r"(?P<cache>.+)=(?P<weight>[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|inf))")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenCache:
    """One of the caches to train on."""

    cache: str | Path
    """A folder or URL, or the ``.safetensors`` file of a pack."""
    ref: str = "current"
    """Which snapshot."""
    weight: float = 1.0
    """How often its windows are seen, beside those of a cache of weight 1."""

    def __post_init__(self) -> None:
        require_weight(self.weight)


def chosen_caches(
    caches: Sequence[str], refs: Sequence[str], *, is_path: Callable[[str], bool]
) -> tuple[ChosenCache, ...]:
    """The caches that were written as ``C`` or ``C=WEIGHT``.

    Args:
        caches: As they were written. What ends in ``=`` and a number has a weight, unless all of
            it is a path.
        refs: None: ``current``; one: of all caches; or one for each cache, in order.
        is_path: Whether there is such a file or folder.

    Raises:
        ConfigError: A weight is out of its range, or the refs are neither one nor as many as the
            caches.
    """
    refs = refs or ["current"]
    if len(refs) not in (1, len(caches)):
        raise ConfigError(
            f"there are {len(refs)} of --ref and {len(caches)} of --cache; give one for all "
            "caches, or one for each in the same order"
        )
    refs = list(refs) * len(caches) if len(refs) == 1 else refs
    return tuple(
        _chosen(written, ref, is_path=is_path) for written, ref in zip(caches, refs, strict=True)
    )


def _chosen(written: str, ref: str, *, is_path: Callable[[str], bool]) -> ChosenCache:
    weighted = None if is_path(written) else _WEIGHTED.fullmatch(written)
    if weighted is None:
        return ChosenCache(cache=written, ref=ref)
    try:
        return ChosenCache(cache=weighted["cache"], ref=ref, weight=float(weighted["weight"]))
    except ValueError as error:
        raise ConfigError(f"--cache {written}: {error}") from error
