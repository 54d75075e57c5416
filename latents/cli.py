"""``mmldm cache``: looking at a cache and verifying it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latents.cache.reader import CachedClip

Command = Callable[[argparse.Namespace], int]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mounts ``cache`` and its verbs."""
    cache = commands.add_parser("cache", help="look at a cache, verify it")
    verbs = cache.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add(verbs, "ls", _ls, "one line for each clip of a level").add_argument(
        "--level", choices=("clip", "kl"), default="kl"
    )
    _add(verbs, "inspect", _inspect, "counts, recipes, statistics and digests")
    _add(verbs, "verify", _verify, "hash everything the log names; exit 1 where damaged")
    quarantine = verbs.add_parser("quarantine", help="clips that were given up, and why")
    quarantine_verbs = quarantine.add_subparsers(dest="what", required=True, metavar="VERB")
    _add(quarantine_verbs, "ls", _quarantine_ls, "one line for each open event")


def _add(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    description: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=description, description=description)
    parser.add_argument("--cache", required=True, type=Path, metavar="C", help="the cache's folder")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(run=command)
    return parser


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _ls(arguments: argparse.Namespace) -> int:
    from latents.cache.reader import open_cache

    level = open_cache(arguments.cache, level=arguments.level)
    if arguments.json:
        _write(json.dumps([_clip_record(clip) for clip in level]))
        return 0
    for clip in level:
        shapes = "  ".join(
            f"{name} {'x'.join(map(str, row.shape))}" for name, row in clip.rows.items()
        )
        _write(f"{clip.clip}  {clip.num_windows:3} windows  {shapes}")
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

    summary = inspect_cache(find_cache(arguments.cache))
    if arguments.json:
        _write(json.dumps(asdict(summary)))
        return 0
    _write(f"{arguments.cache}  commit {summary.commit}, ref {summary.ref or '(none yet)'}")
    for name, level in summary.levels.items():
        _write(
            f"{name:12} {level.num_sources} sources, {level.num_clips} clips, "
            f"{level.num_windows} windows, content {level.content_digest[:16]}"
        )
    for name, field in summary.fields.items():
        megabytes = field.num_bytes / 1e6
        _write(
            f"  {name:10} {field.num_clips} clips, {megabytes:.1f} MB, recipe {field.recipe[:16]}"
        )
        if field.mean is not None and field.std is not None:
            _write(f"  {'':10} mean {_numbers(field.mean)}   std {_numbers(field.std)}")
    _write(f"quarantined  {summary.num_quarantined}")
    return 0


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:+.3f}" for value in values)


def _verify(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import CacheLayout
    from latents.cache.verify import verify_cache

    damaged = verify_cache(CacheLayout(arguments.cache))
    if arguments.json:
        _write(json.dumps({"damaged": [asdict(damage) for damage in damaged]}))
    else:
        for damage in damaged:
            where = f" ({damage.field} of clip {damage.clip})" if damage.clip else ""
            _write(f"{damage.path} at byte {damage.offset}{where}: {damage.problem}")
        _write(f"{len(damaged)} damaged" if damaged else f"{arguments.cache} is intact")
    return 1 if damaged else 0


def _quarantine_ls(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.snapshot import load_snapshot

    events = load_snapshot(find_cache(arguments.cache)).open_quarantine()
    if arguments.json:
        keys = ("source", "segment", "stage", "error_class", "message")
        _write(json.dumps([{key: event[key] for key in keys} for event in events]))
    else:
        for event in events:
            segment = "" if event["segment"] is None else f" segment {event['segment']}"
            _write(
                f"{event['source']}{segment}  [{event['stage']}] "
                f"{event['error_class']}: {event['message']}"
            )
        _write(f"{len(events)} quarantined")
    return 0
