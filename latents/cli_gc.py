"""``mmldm cache gc``: removing what nothing needs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latents.cli_verbs import (
    Verbs,
    add_verb,
    as_bytes,
    counted,
    not_negative,
    run_record,
    write,
    write_json,
)

if TYPE_CHECKING:
    from latents.cache.compact import DeadShare
    from latents.cache.driver_marks import Driver
    from latents.cache.garbage import UnreachedRecipe
    from latents.cache.gc import Garbage, GcPlan
    from latents.cache.layout import CacheLayout


def add_verbs(verbs: Verbs) -> None:
    """Mounts ``gc``."""
    parser = add_verb(
        verbs, "gc", _gc, "remove what killed runs left, and shards that nothing reaches"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--grace",
        type=not_negative,
        default=3600.0,
        metavar="SECONDS",
        help="younger files stay; default 3600",
    )
    parser.add_argument(
        "--unreached",
        action="store_true",
        help="also end latents by recipes that no ref reaches, such as those of an old encoder",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="also rewrite shards in which something has left, so that its bytes go",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """What was done, or in a dry run would be."""

    dry_run: bool
    removed: tuple[Garbage, ...]
    left: tuple[Garbage, ...]
    ended: tuple[UnreachedRecipe, ...]
    """Their latents leave the head."""
    unreached: tuple[UnreachedRecipe, ...]
    """Their latents stay at the head, though no ref reaches them."""
    rewritten: tuple[DeadShare, ...]
    moved_refs: tuple[str, ...]
    pinning_refs: Mapping[str, int]
    drivers: tuple[Driver, ...]


def _gc(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache

    layout = find_cache(arguments.cache)
    outcome = (_foresee if arguments.dry_run else _collect)(layout, arguments)
    if arguments.json:
        write_json(asdict(outcome))
    else:
        for line in _lines(outcome, arguments):
            write(line)
    return 0


def _plan(layout: CacheLayout, arguments: argparse.Namespace) -> GcPlan:
    from latents.cache.gc import plan_gc

    return plan_gc(layout, grace_seconds=arguments.grace, unreached=arguments.unreached)


def _foresee(layout: CacheLayout, arguments: argparse.Namespace) -> _Outcome:
    from latents.cache.compact import pinning_refs, shards_to_rewrite
    from latents.cache.reach import read_history

    plan = _plan(layout, arguments)
    rewritten: tuple[DeadShare, ...] = ()
    pinning: Mapping[str, int] = {}
    if arguments.compact:
        history = read_history(layout)
        rewritten = shards_to_rewrite(layout, history, max_dead_fraction=0)
        pinning = pinning_refs(layout, history)
    return _Outcome(
        dry_run=True,
        removed=plan.removable,
        left=plan.left,
        ended=plan.ended,
        unreached=() if plan.ended else plan.unreached,
        rewritten=rewritten,
        moved_refs=(),
        pinning_refs=pinning,
        drivers=plan.drivers,
    )


def _collect(layout: CacheLayout, arguments: argparse.Namespace) -> _Outcome:
    from latents.cache.compact import rewrite_shards
    from latents.cache.gc import collect_garbage
    from latents.store.shard_writers import shard_writer_of

    run = run_record("cache gc")
    plan = _plan(layout, arguments)
    first = last = collect_garbage(layout, plan, run=run)
    rewritten = None
    if arguments.compact:
        rewritten = rewrite_shards(
            layout,
            max_dead_fraction=0,
            open_shard=lambda store: shard_writer_of(store)(layout.storage),
            run=run,
        )
        last = collect_garbage(layout, _plan(layout, arguments), run=run)
    return _Outcome(
        dry_run=False,
        removed=first.removed if last is first else first.removed + last.removed,
        left=last.left,
        ended=first.ended,
        unreached=() if first.ended else plan.unreached,
        rewritten=rewritten.shards if rewritten else (),
        moved_refs=rewritten.moved_refs if rewritten else (),
        pinning_refs=rewritten.pinning_refs if rewritten else {},
        drivers=last.drivers,
    )


def _lines(outcome: _Outcome, arguments: argparse.Namespace) -> Iterator[str]:
    would = "would be " if outcome.dry_run else ""
    if outcome.dry_run:
        yield from (f"  {one.name}  {one.reason}" for one in outcome.removed)
    yield from (
        f"{one.field} by recipe {one.recipe[:16]}: {counted(one.num_clips, 'clip')} {would}ended"
        for one in outcome.ended
    )
    if outcome.rewritten:
        dead_bytes = as_bytes(sum(one.dead_bytes for one in outcome.rewritten))
        yield (
            f"{counted(len(outcome.rewritten), 'shard')} {would}rewritten without {dead_bytes} "
            "that have left"
        )
    yield from (f"ref {name} moved to the latest commit" for name in outcome.moved_refs)
    yield f"{_sum(outcome.removed)} {would}removed"
    yield from (f"  {line}" for line in _by_reason(outcome.removed))
    yield from _left_lines(outcome, arguments)


def _left_lines(outcome: _Outcome, arguments: argparse.Namespace) -> Iterator[str]:
    """What stays, why, and what to do about it."""
    drivers = "; ".join(
        f"{one.purpose} on {one.host}, process {one.pid}" for one in outcome.drivers
    )
    advice = {
        "too young": f"younger than {arguments.grace:g} s: wait, or give a shorter --grace",
        "drivers at work": f"drivers are at work ({drivers}): run this again when they are done",
        "not asked for": "no ref reaches them: --unreached removes them",
    }
    for reason, said in advice.items():
        if left := [one for one in outcome.left if one.left_for == reason]:
            yield f"{_sum(left)} left, as {said}"
    yield from (
        f"{one.field} by recipe {one.recipe[:16]}: {counted(one.num_clips, 'clip')}, "
        f"{as_bytes(one.num_bytes)} that no ref reaches"
        for one in outcome.unreached
    )
    for name, number in outcome.pinning_refs.items():
        yield f"ref {name} pins {counted(number, 'shard')} with latents that have left; " + (
            "it lets them go with the next ingest or refresh that completes"
            if name == "current"
            else f"`mmldm cache refs rm {name} --cache {arguments.cache}` lets them go"
        )


def _sum(garbage: Sequence[Garbage]) -> str:
    num_bytes = as_bytes(sum(one.num_bytes for one in garbage))
    return f"{counted(len(garbage), 'file')}, {num_bytes}"


def _by_reason(garbage: Sequence[Garbage]) -> Iterator[str]:
    from latents.cache.gc import num_bytes_by_reason

    numbers = Counter(one.reason for one in garbage)
    for reason, num_bytes in num_bytes_by_reason(garbage).items():
        yield f"{reason}: {counted(numbers[reason], 'file')}, {as_bytes(num_bytes)}"
