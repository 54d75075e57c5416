"""``mmldm cache quarantine``: clips that were given up."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from latents.cli_verbs import Verbs, add_verb, counted, run_record, write, write_json
from latents.errors import ConfigError

_KEYS = ("event", "source", "source_digest", "segment", "stage", "error_class", "message")


def add_verbs(verbs: Verbs) -> None:
    """Mounts ``quarantine`` and its own verbs."""
    quarantine = verbs.add_parser("quarantine", help="clips that were given up, and why")
    quarantine_verbs = quarantine.add_subparsers(dest="what", required=True, metavar="VERB")
    add_verb(quarantine_verbs, "ls", _ls, "one line for each clip or source that is given up")
    show = add_verb(quarantine_verbs, "show", _show, "all that happened to a source, in order")
    show.add_argument("name", metavar="NAME", help="URI, path, or digest of a source")
    retry = add_verb(quarantine_verbs, "retry", _retry, "have the next ingest try them again")
    retry.add_argument("names", nargs="*", metavar="NAME", help="URI, path, or digest of a source")
    retry.add_argument("--all", action="store_true", help="all there are")
    retry.add_argument(
        "--reason",
        action="append",
        default=[],
        metavar="CLASS",
        help="only what was given up for it, for example DecodeTimeoutError; repeats",
    )
    drop = add_verb(quarantine_verbs, "drop", _drop, "forget them: neither listed nor tried again")
    drop.add_argument("names", nargs="+", metavar="NAME", help="URI, path, or digest of a source")


def _ls(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.snapshot import load_snapshot

    events = load_snapshot(find_cache(arguments.cache)).open_quarantine()
    if arguments.json:
        write_json([_record(event) for event in events])
        return 0
    for event in events:
        again = "  (to be tried again)" if event["event"] == "retried" else ""
        write(f"{_place(event)}  {_cause(event)}{again}")
    write(f"{len(events)} quarantined")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.quarantine import show

    events = show(find_cache(arguments.cache), arguments.name)
    if arguments.json:
        write_json([_record(event) | {"commit": event["commit"]} for event in events])
        return 0
    for event in events:
        write(f"commit {event['commit']:6}  {event['event']:8}  {_place(event)}")
        if event["event"] == "rejected":
            write(f"{'':16}attempt {event['attempts']}  {_cause(event)}")
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.quarantine import retry

    if arguments.all == bool(arguments.names):
        raise ConfigError("quarantine retry: name sources, or give --all, and not both")
    events = retry(
        find_cache(arguments.cache),
        None if arguments.all else arguments.names,
        reasons=arguments.reason,
        run=run_record("cache quarantine retry"),
    )
    return _tell(
        arguments,
        events,
        f"{counted(len(events), 'event')} to be tried again; the next "
        f"`mmldm ingest SOURCE --cache {arguments.cache}` does"
        if events
        else "nothing is waiting in quarantine",
    )


def _drop(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.quarantine import drop

    events = drop(
        find_cache(arguments.cache), arguments.names, run=run_record("cache quarantine drop")
    )
    return _tell(
        arguments,
        events,
        f"{counted(len(events), 'event')} forgotten; `mmldm cache quarantine retry NAME "
        f"--cache {arguments.cache}` brings one back",
    )


def _tell(arguments: argparse.Namespace, events: list[dict[str, Any]], summary: str) -> int:
    if arguments.json:
        write_json([_record(event) for event in events])
        return 0
    for event in events:
        write(f"{_place(event)}  {_cause(event)}")
    write(summary)
    return 0


def _record(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: event[key] for key in (*_KEYS, "attempts")}


def _place(event: Mapping[str, Any]) -> str:
    segment = "" if event["segment"] is None else f" segment {event['segment']}"
    return f"{event['source']}{segment}"


def _cause(event: Mapping[str, Any]) -> str:
    return f"[{event['stage']}] {event['error_class']}: {event['message']}"
