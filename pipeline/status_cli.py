"""``mmldm status``."""

from __future__ import annotations

import argparse
import json
import sys

from pipeline.cli_settings import Commands


def add_status(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the command."""
    parser = commands.add_parser(
        "status",
        help="how an ingest or refresh stands: running, ended, interrupted, failed or killed",
        description="Tells of a run that goes on or is over, from what it notes in its folder.",
    )
    parser.add_argument(
        "run_or_cache",
        metavar="RUN|CACHE",
        help="a run's folder, or a cache: its newest run",
    )
    parser.add_argument("--json", action="store_true", help="the status as JSON")
    parser.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.status import find_run, read_status, status_json, status_lines

    status = read_status(find_run(arguments.run_or_cache))
    if arguments.json:
        sys.stdout.write(json.dumps(status_json(status)) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in status_lines(status)))
    return 0
