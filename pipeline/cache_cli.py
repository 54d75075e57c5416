"""``mmldm cache why`` and ``mmldm cache verify``, which takes a pack too."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from latents.errors import ConfigError, DamagedError
from pipeline.cli_settings import (
    Commands,
    add_making_options,
    add_settings_options,
    positive_integer,
    settings_on_record,
)

if TYPE_CHECKING:
    from latents.cache.damage import Damage
    from latents.cache.layout import CacheLayout
    from pipeline.deep_verify import Recomputed
    from pipeline.why import FieldOrigin, Origin


def add_cache_verbs(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the verbs of ``mmldm cache`` that need sources or settings."""
    why = verbs.add_parser(
        "why",
        help="the chain of digests behind a clip or source, and what differs from settings",
        description="Shows what made each field, from the source's bytes on, and in which parts "
        "that differs from the settings on record with those given here.",
    )
    why.add_argument(
        "name", metavar="CLIP|SOURCE", help="key of a clip; path or digest of a source"
    )
    add_settings_options(why)
    why.set_defaults(run=_why)
    verify = verbs.add_parser(
        "verify",
        help="hash everything that the log names, or a pack; exit 1 where damaged",
        description="Hashes everything that the log names. With --deep some clips are also made "
        "again from their sources and compared within the tolerance that was recorded. Of a pack "
        "all bytes are compared with their checksums; it takes no option but --json.",
    )
    verified = verify.add_mutually_exclusive_group(required=True)
    verified.add_argument("pack", nargs="?", metavar="PACK", help="a pack (*.safetensors)")
    verified.add_argument("--cache", metavar="C", help="a folder, or a URL (s3://...)")
    verify.add_argument(
        "--deep", type=positive_integer, metavar="N", help="make N clips again and compare"
    )
    verify.add_argument(
        "--rebuild-checkpoints", action="store_true", help="write damaged or missing ones anew"
    )
    add_making_options(verify)
    verify.set_defaults(run=_verify)


def _why(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from pipeline.recipes import wanted_recipes
    from pipeline.why import explain

    layout = find_cache(arguments.cache)
    settings, levels, encoders = settings_on_record(layout, arguments)
    origin = explain(layout, arguments.name, wanted=wanted_recipes(settings, encoders, levels))
    if arguments.json:
        _write(json.dumps(asdict(origin)))
    else:
        for line in _why_lines(origin):
            _write(line)
    return 0


def _why_lines(origin: Origin) -> Iterator[str]:
    yield f"source  {origin.source_digest}"
    yield from (f"  {uri}" for uri in origin.uris or ("(no name on record has these bytes now)",))
    if origin.annotation:
        said = (f"{key} {value}" for key, value in origin.annotation.items() if value)
        yield f"  {', '.join(said)}"
    yield from (f"  {line}" for line in (*origin.quarantine, *origin.left))
    for clip in origin.clips:
        yield f"clip  {clip.clip}  (segment {clip.segment})"
        for field in clip.fields:
            yield from _field_lines(field)
    if not origin.clips:
        yield "no clip of it is in the cache"


def _field_lines(field: FieldOrigin) -> Iterator[str]:
    shape = "x".join(map(str, field.shape))
    named = f", named by {', '.join(field.refs)}" if field.refs else ", named by no ref"
    yield f"  {field.field}  {shape}  {field.digest[:16]}  commit {field.commit}{named}"
    for link in field.chain:
        yield f"    {link.field:17} recipe {link.recipe[:16]}  implementation {link.implementation}"
    yield f"    made on {field.device} with {field.versions}"
    yield f"    at byte {field.offset} of shards/{field.shard}"
    if field.differences is None:
        yield "    the settings have no such field"
    elif not field.differences:
        yield "    as the settings want it"
    else:
        yield from (f"    differs: {difference}" for difference in field.differences)


def _verify(arguments: argparse.Namespace) -> int:
    from latents.cache.pack_format import SUFFIX

    named: str = arguments.pack or arguments.cache
    if named.endswith(SUFFIX):
        return _verify_pack(named, arguments)
    if arguments.pack:
        raise ConfigError(f"{named} is no pack (*{SUFFIX}); of a cache say --cache {named}")
    return _verify_cache(arguments)


_OF_CACHES = {
    "deep": "--deep",
    "rebuild_checkpoints": "--rebuild-checkpoints",
    "levels": "--levels",
    "kl_vae": "--kl-vae",
    "autoencoder": "--autoencoder",
    "preset": "--preset",
    "overrides": "--set",
    "workers": "--workers",
    "store": "--store",
}
"""Options by the attribute that they set: what verifying a pack has no use for."""


def _verify_pack(path: str, arguments: argparse.Namespace) -> int:
    from latents.cache.damage import damage_of
    from latents.cache.pack_verify import verify_pack

    given = {option: getattr(arguments, name) for name, option in _OF_CACHES.items()}
    useless = [o for o, value in given.items() if value not in (None, []) and value is not False]
    if useless:
        raise ConfigError(
            f"{path} is a pack, of which all bytes are compared with their checksums; "
            f"{', '.join(useless)} can be said of a cache alone. Leave it out, or name a cache by "
            "--cache"
        )
    try:
        damaged = verify_pack(path)
    except DamagedError as error:
        damaged = [damage_of(error)]
    if arguments.json:
        _write(json.dumps({"damaged": [asdict(damage) for damage in damaged]}))
    else:
        for damage in damaged:
            _write(_damage_line(damage))
        _write(_verdict(path, damaged))
    return 1 if damaged else 0


def _damage_line(damage: Damage) -> str:
    where = f" ({damage.field} of clip {damage.clip})" if damage.clip else ""
    return f"{damage.path} at byte {damage.offset}{where}: {damage.problem}"


def _verdict(verified: str, damaged: Sequence[Damage]) -> str:
    return f"{len(damaged)} damaged" if damaged else f"{verified} is intact"


def _verify_cache(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import CacheLayout
    from latents.cache.open_storage import open_storage
    from latents.cache.verify import verify_cache

    layout = CacheLayout(open_storage(arguments.cache))
    notes: list[str] = []
    damaged = verify_cache(
        layout, rebuild_checkpoints=arguments.rebuild_checkpoints, on_note=notes.append
    )
    made = _verify_deeply(layout, arguments) if arguments.deep and not damaged else []
    different = [one for one in made if one.problem]
    if arguments.json:
        found: dict[str, object] = {"damaged": [asdict(damage) for damage in damaged]}
        found |= {"notes": notes} if notes else {}
        found |= {"recomputed": [asdict(one) for one in made]} if arguments.deep else {}
        _write(json.dumps(found))
        return 1 if damaged or different else 0
    for note in notes:
        _write(note)
    for damage in damaged:
        _write(_damage_line(damage))
    for one in different:
        _write(f"{one.field} of clip {one.clip} ({one.source}): {one.problem}")
    _write(_verdict(arguments.cache, damaged))
    if made:
        clips = len({one.clip for one in made})
        worst = max((one.distance for one in made if one.distance is not None), default=None)
        farthest = "" if worst is None else f", at most {worst:.1e} apart"
        _write(
            f"{clips} clips made again, {len(made)} fields: {len(made) - len(different)} agree"
            f"{farthest}"
        )
    return 1 if damaged or different else 0


def _verify_deeply(layout: CacheLayout, arguments: argparse.Namespace) -> list[Recomputed]:
    from latents.cache.refs import require_ref
    from latents.cache.snapshot import load_snapshot
    from pipeline.cli_settings import prepare_torch
    from pipeline.deep_verify import deep_verify, deep_verify_stage, lenient
    from pipeline.originals import SourceClips
    from pipeline.progress import Tally, show_progress

    ref = require_ref(layout, "current")
    settings, _, encoders = settings_on_record(layout, arguments)
    stage = deep_verify_stage(
        settings, encoders, fields=ref.recipes, device=prepare_torch(settings), cache=layout
    )
    clips = SourceClips(load_snapshot(layout, ref.commit), lenient(settings))
    try:
        with show_progress("made again", arguments.deep, unit="clips") as report:
            return deep_verify(
                layout,
                clips,
                stage,
                num_clips=arguments.deep,
                on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
            )
    finally:
        clips.close()


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
