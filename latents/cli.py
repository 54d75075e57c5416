"""``mmldm cache``: looking at a cache, and changing what it names."""

from __future__ import annotations

from latents import cli_export, cli_gc, cli_looking, cli_quarantine, cli_refs, cli_removal
from latents.cli_verbs import Verbs


def add_commands(commands: Verbs) -> Verbs:
    """Mounts ``cache`` and its verbs; returns where further verbs are mounted."""
    cache = commands.add_parser("cache", help="look at a cache, and change what it names")
    verbs: Verbs = cache.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in (cli_looking, cli_quarantine, cli_removal, cli_refs, cli_export, cli_gc):
        group.add_verbs(verbs)
    return verbs
