"""``mmldm cache drop``: taking content down."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from latents.cli_verbs import Verbs, add_verb, counted, run_record, write, write_json

if TYPE_CHECKING:
    from latents.cache.removal import Dropped


def add_verbs(verbs: Verbs) -> None:
    """Mounts ``drop``."""
    parser = add_verb(
        verbs,
        "drop",
        _drop,
        "take sources or clips down: their latents leave, and they are not ingested again",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="URI, path, or digest (8 digits or more) of a source; key of a clip",
    )
    parser.add_argument(
        "--undo", action="store_true", help="let them be ingested again; nothing comes back by it"
    )


def _drop(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.removal import drop, readmit

    layout = find_cache(arguments.cache)
    if arguments.undo:
        dropped = readmit(layout, arguments.names, run=run_record("cache drop --undo"))
        lines = _readmitted_lines(dropped, arguments.cache)
    else:
        dropped = drop(layout, arguments.names, run=run_record("cache drop"))
        lines = _dropped_lines(dropped, arguments.cache)
    if arguments.json:
        write_json(asdict(dropped))
        return 0
    for line in lines:
        write(line)
    return 0


def _dropped_lines(dropped: Dropped, cache: str) -> Iterator[str]:
    yield from _names(dropped)
    yield (
        f"commit {dropped.commit}: {counted(len(dropped.sources), 'source')} dropped whole and "
        f"{counted(len(dropped.clips), 'clip')} by name; the latents of "
        f"{counted(dropped.num_clips, 'clip')} left"
    )
    if len(dropped.uris) > len(dropped.sources):
        yield "what is dropped is content: all names of the same bytes left with it"
    yield {
        "moved": "ref current names them no more",
        "stays": "ref current still names them, as a job was not completed since it moved last: "
        "it leaves them behind with the next ingest or refresh that completes",
        "absent": "there is no ref current yet",
    }[dropped.current]
    yield f"next: `mmldm cache gc --compact --cache {cache}` removes their bytes"


def _readmitted_lines(dropped: Dropped, cache: str) -> Iterator[str]:
    yield from _names(dropped)
    yield (
        f"commit {dropped.commit}: {counted(len(dropped.sources), 'source')} and "
        f"{counted(len(dropped.clips), 'clip')} readmitted"
    )
    yield f"next: `mmldm ingest SOURCE --cache {cache}` makes their latents again"


def _names(dropped: Dropped) -> Iterator[str]:
    yield from (f"  {digest}" for digest in dropped.sources)
    yield from (f"  {uri}" for uri in dropped.uris)
    yield from (f"  clip {clip}" for clip in dropped.clips)
