"""What a plan does to each field, counted while its sources are gone through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from pipeline.job_plan import FieldPlan, Reason, Wanted


class FieldCounts:
    """Counts of clips and sources, for each wanted field."""

    def __init__(self, wanted: Wanted) -> None:
        self._recipes = wanted.digests
        self._num_held: Counter[str] = Counter()
        self._to_encode: dict[str, Counter[Reason]] = {field: Counter() for field in self._recipes}
        self._num_uncut: dict[str, Counter[Reason]] = {field: Counter() for field in self._recipes}
        self._num_given_up: Counter[str] = Counter()

    def add_whole(self, num_clips: int) -> None:
        """Clips that have every field."""
        self._num_held.update(dict.fromkeys(self._recipes, num_clips))

    def add_held(self, segments: Iterable[Collection[str]]) -> None:
        """The fields that each segment has."""
        self._num_held.update(field for fields in segments for field in fields)

    def add_given_up(self, fields: Iterable[str]) -> None:
        """The fields that one clip or source lacks because it was given up."""
        self._num_given_up.update(fields)

    def add_planned(
        self, reasons: Mapping[str, Reason], planned: Collection[Collection[str]]
    ) -> None:
        """The fields to make of each segment of a source; no segments where it was never cut.

        Args:
            reasons: Why each field is made.
            planned: Fields of each segment.
        """
        counts = self._to_encode if planned else self._num_uncut
        for field, reason in reasons.items():
            counts[field][reason] += sum(field in make for make in planned) if planned else 1

    def plans(self, leaving: Mapping[str, int], *, num_unreadable: int) -> dict[str, FieldPlan]:
        """What happens to each field.

        Args:
            leaving: Clips that leave, by recipe.
            num_unreadable: Sources that were given up before anything was known of them.
        """
        return {
            field: FieldPlan(
                num_present=self._num_held[field],
                to_encode=dict(self._to_encode[field]),
                num_uncut=dict(self._num_uncut[field]),
                num_leaving=leaving.get(recipe, 0),
                num_quarantined=self._num_given_up[field] + num_unreadable,
            )
            for field, recipe in self._recipes.items()
        }
