"""``mmldm cache ls``, ``inspect`` and ``log``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from latents.cli_verbs import Verbs, add_verb, as_bytes, counted, write, write_json
from latents.fields import LEVELS

if TYPE_CHECKING:
    from latents.cache.commit import Commit
    from latents.cache.inspect import FieldSummary
    from latents.cache.reader import CachedClip


def add_verbs(verbs: Verbs) -> None:
    """Mounts the verbs that change nothing."""
    ls = add_verb(verbs, "ls", _ls, "one line for each clip of a level")
    ls.add_argument("--level", choices=tuple(LEVELS), default="kl")
    ls.add_argument("--ref", default="current", metavar="R")
    inspect = add_verb(verbs, "inspect", _inspect, "counts, recipes, statistics and digests")
    inspect.add_argument("--ref", metavar="R", help="default: current, if there is one yet")
    log = add_verb(verbs, "log", _log, "the latest commits: what each brought and ended")
    log.add_argument("--num", type=int, default=20, metavar="N", help="how many; default 20")


def _ls(arguments: argparse.Namespace) -> int:
    from latents.cache.reader import open_cache

    level = open_cache(arguments.cache, level=arguments.level, ref=arguments.ref)
    if arguments.json:
        write_json([_clip_record(clip) for clip in level])
        return 0
    for clip in level:
        shapes = "  ".join(
            f"{name} {'x'.join(map(str, row.shape))}" for name, row in clip.rows.items()
        )
        write(f"{clip.clip}  {clip.num_windows:3} windows  {shapes}")
    return 0


def _clip_record(clip: CachedClip) -> dict[str, object]:
    row = next(iter(clip.rows.values()))
    return {
        "clip": clip.clip,
        "source": row.source,
        "segment": row.segment,
        "num_windows": clip.num_windows,
        "loudness_dbfs": row.loudness_dbfs,
        "fields": {name: field.shape for name, field in clip.rows.items()},
    }


def _inspect(arguments: argparse.Namespace) -> int:
    from latents.cache.inspect import inspect_cache
    from latents.cache.layout import find_cache
    from latents.cache.refs import require_ref

    layout = find_cache(arguments.cache)
    if arguments.ref is not None:
        require_ref(layout, arguments.ref)
    summary = inspect_cache(layout, ref=arguments.ref or "current")
    if arguments.json:
        write_json(asdict(summary))
        return 0
    write(f"{arguments.cache}  commit {summary.commit}, ref {summary.ref or '(none yet)'}")
    for name, level in summary.levels.items():
        write(
            f"{name:12} {level.num_sources} sources, {level.num_clips} clips, "
            f"{level.num_windows} windows, content {level.content_digest[:16]}"
        )
    for name, field in summary.fields.items():
        for line in _field_lines(name, field):
            write(f"  {line}")
    write(f"quarantined  {summary.num_quarantined}")
    return 0


def _field_lines(name: str, field: FieldSummary) -> Iterator[str]:
    from latents.cache.histogram import histogram_lines

    yield (
        f"{name:10} {counted(field.num_clips, 'clip')}, {as_bytes(field.num_bytes)}, "
        f"recipe {field.recipe[:16]}"
    )
    if field.mean is not None and field.std is not None:
        yield f"{'':10} mean {_numbers(field.mean)}   std {_numbers(field.std)}"
    for histogram in field.histograms:
        yield from (f"{'':10} {line}" for line in histogram_lines(histogram))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:+.3f}" for value in values)


def _log(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.log import CommitLog

    log = CommitLog(find_cache(arguments.cache))
    head = log.head()
    commits = list(log.commits(max(0, head + 1 - arguments.num), head))
    commits.reverse()
    if arguments.json:
        write_json([_commit_record(commit) for commit in commits])
        return 0
    for commit in commits:
        rows = ", ".join(f"{kind} {file.num_rows}" for kind, file in commit.files.items())
        run = "  ".join(commit.run[key] for key in sorted(commit.run, reverse=True))
        write(f"{commit.number:6}  {rows}  {run}".rstrip())
    if not commits:
        write(f"{arguments.cache} has no commit yet")
    return 0


def _commit_record(commit: Commit) -> dict[str, object]:
    return {
        "number": commit.number,
        "run": dict(commit.run),
        "rows": {kind: file.num_rows for kind, file in commit.files.items()},
    }
