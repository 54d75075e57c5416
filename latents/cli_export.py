"""``mmldm cache export``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from latents.cli_verbs import Verbs, add_verb, as_bytes, counted, run_record, write, write_json
from latents.fields import LEVELS
from latents.store.kinds import STORE_NAMES

if TYPE_CHECKING:
    from latents.cache.export import Exported
    from latents.cache.pack_writer import WrittenPack

_REPORT_SECONDS = 10.0


def add_verbs(verbs: Verbs) -> None:
    """Mounts ``export``."""
    parser = add_verb(
        verbs,
        "export",
        _export,
        "a snapshot as one memory-mapped file (pack), or as a cache of its own (tar, zarr)",
    )
    parser.add_argument("--to", required=True, choices=("pack", *STORE_NAMES))
    parser.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="a new *.safetensors file (pack), or a new cache's folder or URL",
    )
    parser.add_argument("--ref", default="current", metavar="R", help="default: current")
    parser.add_argument(
        "--level",
        choices=tuple(LEVELS),
        help="default: perceptual (pack), or all that the ref names (tar, zarr)",
    )


def _export(arguments: argparse.Namespace) -> int:
    if arguments.to == "pack":
        return _export_pack(arguments)
    return _export_cache(arguments)


def _export_pack(arguments: argparse.Namespace) -> int:
    from latents.cache.pack_writer import write_pack
    from latents.cache.reader import open_cache

    level = open_cache(arguments.cache, level=arguments.level or "perceptual", ref=arguments.ref)
    written = write_pack(level, arguments.out, ref=arguments.ref, on_clip=_Reporter("clips"))
    if arguments.json:
        write_json(_pack_record(written))
    else:
        header = written.header
        write(
            f"{written.path}: {counted(written.num_windows, 'window')} of "
            f"{counted(written.num_clips, 'clip')}, {as_bytes(written.num_bytes)}, "
            f"content {header.content_digest[:16]}"
        )
    return 0


def _pack_record(written: WrittenPack) -> dict[str, object]:
    header = written.header
    return {
        "out": str(written.path),
        "commit": header.commit,
        "num_clips": written.num_clips,
        "num_windows": written.num_windows,
        "num_bytes": written.num_bytes,
        "levels": {header.level: header.content_digest},
    }


def _export_cache(arguments: argparse.Namespace) -> int:
    from latents.cache.export import export_cache
    from latents.cache.layout import find_cache
    from latents.store.shard_writers import shard_writer_of

    open_shard = shard_writer_of(arguments.to)
    exported = export_cache(
        find_cache(arguments.cache),
        arguments.out,
        store=arguments.to,
        open_shard=lambda layout: open_shard(layout.storage),
        run=run_record("cache export"),
        ref=arguments.ref,
        level=arguments.level,
        on_shard=_Reporter("shards"),
    )
    if arguments.json:
        write_json(_cache_record(exported))
        return 0
    there = exported.num_shards - exported.num_copied
    before = f", {there} of them there before" if there else ""
    write(
        f"{exported.url}: {counted(exported.num_clips, 'clip')} in "
        f"{counted(exported.num_shards, 'shard')}{before}; current names commit {exported.commit}"
    )
    for level, digest in exported.levels.items():
        write(f"{level:12} content {digest[:16]}")
    return 0


def _cache_record(exported: Exported) -> dict[str, object]:
    return {
        "out": exported.url,
        "commit": exported.commit,
        "num_clips": exported.num_clips,
        "num_shards": exported.num_shards,
        "num_copied": exported.num_copied,
        "levels": dict(exported.levels),
    }


class _Reporter:
    """Tells every few seconds, and at the end, how far an export is."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Told how many are done and how many there are."""
        now = time.monotonic()
        if done < total and now - self._last < _REPORT_SECONDS:
            return
        self._last = now
        seconds = now - self._started
        rate = f", {done / seconds:.2f}/s" if seconds > 0 else ""
        left = f", {(total - done) * seconds / done:.0f} s left" if done < total else ""
        sys.stderr.write(f"exported {done}/{total} {self._unit}{rate}, {seconds:.0f} s{left}\n")
