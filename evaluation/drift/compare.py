"""What changed between two refs of a cache, such as before and after an encoder update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from evaluation.drift.posteriors import PosteriorDrift, posterior_drift
from evaluation.drift.probes import FieldPair, OpenRef, ProbedField, open_refs, pair_field
from latents.cache.layout import CacheLayout
from latents.cache.reader import read_tensor
from latents.errors import CacheError
from latents.fields import FIELDS, LEVELS, Level
from latents.recipe import recipe_differences

if TYPE_CHECKING:  # pictures bring torch, which latents alone do not need
    from evaluation.drift.pictures import DecodedDrift


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldDrift:
    """One field that both refs have."""

    recipe_a: str
    recipe_b: str
    differences: tuple[str, ...]
    """Parts in which the recipes differ, each as ``path: A -> B``."""
    num_clips_in_both: int
    num_clips_only_a: int
    num_clips_only_b: int
    num_equal: int
    """Clips in both whose bytes are equal."""
    num_probes: int
    """Clips that were read for the figures below."""
    unmeasured: str | None
    """Why there are none."""
    posterior: PosteriorDrift | None
    decoded: DecodedDrift | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftSide:
    """One of the two refs, and what only it has."""

    ref: str
    commit: int
    only_fields: tuple[str, ...]
    only_clips: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Answers `mmldm cache diff A B`."""

    a: DriftSide
    b: DriftSide
    num_clips_in_both: int
    """With any field in each."""
    fields: dict[str, FieldDrift]


class DecodeProbes(Protocol):
    """Sets what a KL-VAE makes of both refs' probes side by side."""

    def __call__(self, a: ProbedField, b: ProbedField) -> DecodedDrift:
        """Both are of one field of the ``kl`` level, with probes of the same shapes."""


class RefPair:
    """Two refs of a cache, with the clips on which they are to be compared.

    Args:
        layout: The cache.
        a: Name of a ref, the one that distances are relative to.
        b: Name of another, or the same.
        num_clips: Probe clips of each field, spread evenly over the keys that both refs have.

    Raises:
        CacheError: There is no such ref, or they have no clip of a field in common.
        DamagedError: The log cannot be read.
    """

    def __init__(self, layout: CacheLayout, a: str, b: str, *, num_clips: int) -> None:
        self._a, self._b = open_refs(layout, a, b)
        shared = [f for f in FIELDS if f in self._a.pinned.recipes and f in self._b.pinned.recipes]
        self._fields = {
            field: pair_field(field, self._a, self._b, num_clips=num_clips) for field in shared
        }
        if not any(pair.num_clips_in_both for pair in self._fields.values()):
            raise CacheError(
                f"{layout.url}: these refs have no clip of a field in common; {_contents(self._a)} "
                f"and {_contents(self._b)}. A clip is known by its source's bytes, its first frame "
                "and the frame rate: name two refs of the same sources, cut in the same way"
            )

    def num_probes(self, level: Level) -> int:
        """Probe clips to be read over all fields of a level."""
        pairs = [self._fields[field] for field in LEVELS[level] if field in self._fields]
        return sum(len(pair.a.probes) for pair in pairs if not pair.unmeasured)

    def compare(self, *, decode: DecodeProbes | None = None) -> Drift:
        """Reads the probe clips and measures how far they are apart.

        Args:
            decode: Sets pictures side by side too. None measures latents alone.

        Raises:
            DamagedError: A tensor is not what the log says.
        """
        fields = {name: _measure(name, pair, decode) for name, pair in self._fields.items()}
        clips_a, clips_b = self._a.clips(), self._b.clips()
        return Drift(
            a=self._side(self._a, clips_a - clips_b),
            b=self._side(self._b, clips_b - clips_a),
            num_clips_in_both=len(clips_a & clips_b),
            fields=fields,
        )

    def _side(self, ref: OpenRef, only_clips: set[str]) -> DriftSide:
        return DriftSide(
            ref=ref.name,
            commit=ref.pinned.commit,
            only_fields=tuple(sorted(ref.pinned.recipes.keys() - self._fields.keys())),
            only_clips=tuple(sorted(only_clips)),
        )


def _contents(ref: OpenRef) -> str:
    fields = ", ".join(sorted(ref.pinned.recipes)) or "no field"
    return f"{ref.name!r} has {len(ref.clips())} clips of {fields}"


def _measure(field: str, pair: FieldPair, decode: DecodeProbes | None) -> FieldDrift:
    is_measured = pair.unmeasured is None
    is_decoded = is_measured and field in LEVELS["kl"]
    return FieldDrift(
        recipe_a=pair.a.recipe.digest,
        recipe_b=pair.b.recipe.digest,
        differences=recipe_differences(pair.a.recipe, pair.b.recipe),
        num_clips_in_both=pair.num_clips_in_both,
        num_clips_only_a=pair.num_clips_only_a,
        num_clips_only_b=pair.num_clips_only_b,
        num_equal=pair.num_equal,
        num_probes=len(pair.a.probes) if is_measured else 0,
        unmeasured=pair.unmeasured,
        decoded=decode(pair.a, pair.b) if decode and is_decoded else None,
        posterior=posterior_drift(_moments(pair)) if is_measured else None,
    )


def _moments(pair: FieldPair) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    for a, b in zip(pair.a.probes, pair.b.probes, strict=True):
        yield a.clip, read_tensor(pair.a.ref.layout, a), read_tensor(pair.b.ref.layout, b)
