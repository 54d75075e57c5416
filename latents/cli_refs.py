"""``mmldm cache refs``: names for commits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latents.cli_verbs import Verbs, add_verb, write, write_json

if TYPE_CHECKING:
    from latents.cache.refs import Ref


def add_verbs(verbs: Verbs) -> None:
    """Mounts ``refs`` and its own verbs."""
    refs = verbs.add_parser("refs", help="names for a commit and the recipes that belong together")
    ref_verbs = refs.add_subparsers(dest="what", required=True, metavar="VERB")
    add_verb(ref_verbs, "ls", _ls, "one line for each ref, and one for each of its recipes")
    point = add_verb(ref_verbs, "set", _set, "point a ref at what another names, or at a commit")
    point.add_argument("name", metavar="NAME")
    point.add_argument("--to", default="current", metavar="REF", help="default: current")
    point.add_argument(
        "--commit", type=int, metavar="N", help="with the ref's own recipes, or those of --to"
    )
    remove = add_verb(ref_verbs, "rm", _rm, "forget a ref; its latents stay until a gc")
    remove.add_argument("name", metavar="NAME")


def _ls(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.refs import read_ref, ref_names

    layout = find_cache(arguments.cache)
    found = {name: read_ref(layout, name) for name in ref_names(layout)}
    refs = {name: ref for name, ref in found.items() if ref is not None}
    if arguments.json:
        write_json({name: _record(ref) for name, ref in refs.items()})
        return 0
    for name, ref in refs.items():
        write(f"{name}  commit {ref.commit}")
        for field, recipe in sorted(ref.recipes.items()):
            write(f"  {field:17} recipe {recipe[:16]}")
    if not refs:
        write(f"{arguments.cache} has no ref yet; 'current' appears when an ingest has completed")
    return 0


def _set(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.pinning import pin

    ref = pin(find_cache(arguments.cache), arguments.name, to=arguments.to, commit=arguments.commit)
    if arguments.json:
        write_json({arguments.name: _record(ref)})
    else:
        write(f"{arguments.name} names commit {ref.commit}; what it reaches is kept by every gc")
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.refs import delete_ref, require_ref

    layout = find_cache(arguments.cache)
    ref = require_ref(layout, arguments.name)
    delete_ref(layout, arguments.name)
    if arguments.json:
        write_json({arguments.name: _record(ref)})
    else:
        write(
            f"{arguments.name} named commit {ref.commit} and is gone; "
            f"`mmldm cache gc --unreached --dry-run --cache {arguments.cache}` lists what no ref "
            "reaches now"
        )
    return 0


def _record(ref: Ref) -> dict[str, object]:
    return {"commit": ref.commit, "recipes": dict(ref.recipes)}
