"""Moving ``refs/current`` at the end of a job: when it may, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, move_ref, read_recipe, write_ref
from latents.cache.snapshot import Snapshot, load_snapshot
from latents.fields import LEVELS
from pipeline.job_plan import Wanted


class CurrentRef:
    """``refs/current`` of a cache, from the planning of a job to its end.

    Args:
        layout: The cache.
        wanted: What the job makes.
        snapshot: What it was planned on.
        planned: What ``current`` was then.
        uris: Of the sources that were asked for.
        unread: Of those of them that could not be read now.
        may_replace: The job may put other recipes in the place of those there are.
    """

    def __init__(
        self,
        layout: CacheLayout,
        wanted: Wanted,
        snapshot: Snapshot,
        *,
        planned: Ref | None,
        uris: frozenset[str],
        unread: frozenset[str],
        may_replace: bool,
    ) -> None:
        self._layout, self._wanted, self._snapshot = layout, wanted, snapshot
        self._planned, self._uris, self._may_replace = planned, uris, may_replace
        self._unread = unread
        self.why_not: str | None = None
        """Why it was left where it is."""

    def move(self, *, has_made: bool) -> int:
        """Points ``current`` at the log's head and at the wanted recipes; returns the head.

        It never moves to an earlier commit, to recipes that no clip was made by, nor away from
        recipes that another job put there meanwhile or that sources outside this job, or such as
        could not be read now, have alone.
        Where it leaves other recipes, ``refs/previous`` keeps what it was.

        Args:
            has_made: This job committed a clip.
        """
        head = CommitLog(self._layout, seen=self._snapshot.commit).head()
        made = set(pc.unique(self._snapshot.index["recipe"].cast(pa.string())).to_pylist())
        if head < 0 or not (has_made or set(self._wanted.digests.values()) <= made):
            self.why_not = "no clip has been made by these recipes"
            return head
        move_ref(self._layout, "current", lambda current: self._next(current, head))
        return head

    def _next(self, current: Ref | None, head: int) -> Ref | None:
        found = dict(current.recipes) if current else {}
        recipes = self._kept(found) | self._wanted.digests
        self.why_not = None
        if current and any(recipes.get(field) != digest for field, digest in found.items()):
            self.why_not = self._refusal(found)
            if self.why_not:
                return None
            # First, so that there is a way back whatever happens now.
            write_ref(self._layout, "previous", current)
        commit = max(head, current.commit) if current else head
        wanted = Ref(commit=commit, recipes=recipes)
        return wanted if wanted != current else None

    def _refusal(self, found: Mapping[str, str]) -> str | None:
        """Why the recipes there are must not be replaced."""
        planned = dict(self._planned.recipes) if self._planned else {}
        if not self._may_replace or found != planned:
            return "another job has moved it to other recipes meanwhile"
        on_record = load_snapshot(self._layout).sources["uri"]
        asked = pa.array(sorted(self._uris), pa.string())
        num_others = pc.sum(pc.invert(pc.is_in(on_record, value_set=asked))).as_py() or 0
        if num_others:
            return (
                f"{num_others} other sources on record do not have these recipes; "
                "`mmldm refresh` without SOURCE makes them all"
            )
        if num_unread := self._num_unread(found):
            return (
                f"{num_unread} sources whose latents it names could not be read now; run this "
                "again once they can be, or let them leave with `mmldm ingest --prune` or "
                "`mmldm cache drop`"
            )
        return None

    def _num_unread(self, found: Mapping[str, str]) -> int:
        """Contents that could not be read, and have latents by these recipes."""
        sources, index = self._snapshot.sources, self._snapshot.index
        unread = pa.array(sorted(self._unread), pa.string())
        digests = sources.filter(pc.is_in(sources["uri"], value_set=unread))["digest"]
        recipes = pa.array(list(found.values()), pa.string())
        has_latents = pc.and_(
            pc.is_in(index["recipe"], value_set=recipes),
            pc.is_in(index["source"], value_set=digests.combine_chunks()),
        )
        return len(pc.unique(index.filter(has_latents)["source"].cast(pa.string())))

    def _kept(self, found: Mapping[str, str]) -> dict[str, str]:
        """The levels of a ref that were made from what is wanted now, or have no part in it."""
        usable = self._wanted.usable
        consistent = {
            field: digest
            for field, digest in found.items()
            if all(
                usable.get(part.field, part.digest) == part.digest
                for part in read_recipe(self._layout, digest).with_ancestors()
            )
        }
        # Half a level is of no use to anybody.
        whole = [fields for fields in LEVELS.values() if set(fields) <= consistent.keys()]
        return {field: consistent[field] for fields in whole for field in fields}
