"""A fault that verification found: where it is, and what it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latents.errors import DamagedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One fault found."""

    path: str
    """The file, relative to the cache."""
    clip: str | None = None
    """Whose latents are damaged; None where it is no clip's."""
    field: str | None = None
    offset: int = 0
    """Byte within the file at which the damaged slice begins; 0 where the whole file is meant."""
    problem: str
    """What was found, in one sentence."""


def damage_of(error: DamagedError) -> Damage:
    """The fault that an error told of."""
    return Damage(path=error.path, offset=error.offset, problem=error.problem)


def in_order(damaged: Iterable[Damage]) -> list[Damage]:
    """Each fault once, by file and by place in it."""
    return sorted(
        set(damaged),
        key=lambda one: (one.path, one.offset, one.clip or "", one.field or "", one.problem),
    )
