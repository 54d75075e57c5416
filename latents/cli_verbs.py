"""What the verbs of ``mmldm cache`` have in common."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command = Callable[[argparse.Namespace], int]


def add_verb(
    verbs: Verbs, name: str, command: Command, description: str
) -> argparse.ArgumentParser:
    """A verb with the options that all have: ``--cache`` and ``--json``."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=description, description=description
    )
    parser.add_argument("--cache", required=True, metavar="C", help="the cache's folder or URL")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(run=command)
    return parser


def not_negative(text: str) -> float:
    """A number of 0 or more, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return number


def write(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")


def write_json(value: object) -> None:
    """A value as one line of JSON."""
    write(json.dumps(value))


def run_record(command: str) -> dict[str, str]:
    """What a commit says of the command that made it."""
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"command": command, "started": started}


def as_bytes(num_bytes: int) -> str:
    """A size as people read it."""
    if num_bytes < 100_000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def counted(number: int, noun: str) -> str:
    """A number and what it counts: ``1 clip``, ``2 clips``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
