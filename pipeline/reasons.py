"""Why latents are to be made: what the cache has of a source, beside what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.removal import readmitted_sources
from latents.cache.snapshot import Snapshot
from pipeline.given_up import GivenUp
from pipeline.job_plan import Reason, Wanted
from pipeline.sources import HashedSource


class Reasons:
    """Says why fields of some sources are to be made.

    Args:
        snapshot: The head's.
        wanted: What is to be made.
        given_up: The quarantine.
        sources: Those of which something is to be made.
        changed: URIs of sources whose bytes are not those on record.
        reason_for: From a field and the digest of a recipe that it was made by before to why it
            is made anew.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        wanted: Wanted,
        *,
        given_up: GivenUp,
        sources: Sequence[HashedSource],
        changed: Set[str],
        reason_for: Callable[[str, str], Reason],
    ) -> None:
        self._recipes = wanted.digests
        self._given_up = given_up
        self._changed = changed
        self._reason_for = reason_for
        self._readmitted = readmitted_sources(snapshot)
        self._made_before = _made_before(snapshot, [source.digest for source in sources])

    def why(self, source: HashedSource, field: str) -> Reason:
        """Why a field of a source is to be made."""
        before = self._made_before.get(source.digest, {})
        last_commit = max((made.commit for made in before.values()), default=-1)
        if self._given_up.is_retried(source, since=last_commit):
            return "retried"
        if self._readmitted.get(source.digest, -1) > last_commit:
            return "readmitted"
        if not before:
            return "changed bytes" if source.source.uri in self._changed else "new source"
        if field not in before:
            return "new level"
        if before[field].recipe == self._recipes[field]:
            return "unfinished"
        return self._reason_for(field, before[field].recipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """The latest latents of a field."""

    recipe: str
    commit: int


def _made_before(snapshot: Snapshot, digests: Sequence[str]) -> dict[str, dict[str, _Made]]:
    """By source and field, the latest latents of some sources."""
    index = snapshot.index
    of_these = pc.is_in(index["source"], value_set=pa.array(digests, pa.string()))
    rows = index.filter(of_these).unify_dictionaries()
    latest = rows.group_by(["source", "field", "recipe"]).aggregate([("commit", "max")])
    latest = latest.sort_by("commit_max")
    found: dict[str, dict[str, _Made]] = {}
    columns = (latest[name].to_pylist() for name in ("source", "field", "recipe", "commit_max"))
    for source, field, recipe, commit in zip(*columns, strict=True):
        found.setdefault(source, {})[field] = _Made(recipe=recipe, commit=commit)
    return found
