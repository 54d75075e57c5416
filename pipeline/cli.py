"""``mmldm synth``, ``ingest``, ``plan`` and ``refresh``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from latents.errors import ConfigError
from pipeline.calibrate_cli import add_calibrate
from pipeline.cli_settings import (
    Commands,
    add_settings_options,
    cluster_address,
    open_engine,
    positive_integer,
    prepare_torch,
    settings_from,
    settings_on_record,
)
from pipeline.status_cli import add_status

if TYPE_CHECKING:
    from latents.cache.layout import CacheLayout
    from pipeline.run import JobResult


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the pipeline's commands."""
    _add_synth(commands)
    _add_ingest(commands)
    _add_plan(commands)
    _add_refresh(commands)
    add_calibrate(commands)
    add_status(commands)


def _add_synth(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("synth", help="make sounding scenes: mp4 files and clips.jsonl")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--num-clips", type=positive_integer, default=48)
    parser.add_argument("--seconds", type=_seconds, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=positive_integer, default=20)
    parser.add_argument(
        "--size", type=positive_integer, default=256, help="height and width, in pixels"
    )
    parser.set_defaults(run=_synth)


def _add_ingest(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "ingest",
        help="videos -> committed latents",
        description="Decodes and encodes what the cache does not hold yet. Exit status: 0 done, "
        "1 failed or nothing became a row, 2 wrong use, 3 done with quarantined clips.",
    )
    _add_sources(parser, nargs="+")
    add_settings_options(parser)
    _add_run_options(parser)
    parser.add_argument(
        "--prune", action="store_true", help="sources on record that are not named here leave"
    )
    parser.add_argument(
        "--rehash", action="store_true", help="read every file, though its time did not change"
    )
    parser.set_defaults(run=_ingest)


def _add_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="what ingest or refresh would encode, why, and what would leave",
        description="Changes nothing. Without SOURCE it plans a refresh of all sources on record.",
    )
    _add_sources(parser, nargs="*")
    add_settings_options(parser)
    parser.add_argument("--prune", action="store_true", help="as `mmldm ingest --prune`")
    parser.set_defaults(run=_plan)


def _add_refresh(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "refresh",
        help="latents anew by other encoders or settings, beside the old ones",
        description="Makes what `mmldm plan` shows, from the levels that the cache keeps where "
        "they will do and from the sources where not, with the settings on record except those "
        "given here. The old latents stay; the new ones become current when all is done.",
    )
    _add_sources(parser, nargs="*")
    add_settings_options(parser)
    _add_run_options(parser)
    parser.set_defaults(run=_refresh)


def _add_sources(parser: argparse.ArgumentParser, *, nargs: Literal["+", "*"]) -> None:
    parser.add_argument(
        "sources",
        nargs=nargs,
        metavar="SOURCE",
        help="folder, video (a stretch of it: VIDEO#t=420,430), 'pattern' in quotes, list (.txt, "
        ".lst, .jsonl, .csv, .tsv, .parquet), .tar of videos, a URL of any of these (s3://, gs://, "
        "az://, https://, zip://FILE::ARCHIVE ...), landscape:FOLDER, aist:FOLDER, "
        "audioset:CSV:FOLDER, or scenes:SEED:NUM[:SECONDS]"
        + ("; default: all sources on record" if nargs == "*" else ""),
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--ray-address", metavar="A", help="default: RAY_ADDRESS, else a local one")
    parser.add_argument(
        "--part",
        type=_part,
        metavar="i/n",
        help="only the i-th of n parts of the sources; once all parts are done, run without it",
    )


def _synth(arguments: argparse.Namespace) -> int:
    from pipeline.progress import Tally, show_progress
    from pipeline.synth import synthesise

    with show_progress("synthesised", arguments.num_clips, unit="clips") as report:
        synthesise(
            arguments.out,
            num_clips=arguments.num_clips,
            seconds=arguments.seconds,
            seed=arguments.seed,
            fps=arguments.fps,
            height=arguments.size,
            width=arguments.size,
            on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
        )
    return 0


def _ingest(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import create_cache
    from pipeline.ingest import ingest
    from pipeline.sources import find_sources, part_of

    if arguments.part and arguments.prune:
        raise ConfigError(
            "--prune needs to see all sources, and --part hides some; prune in a run of its own"
        )
    settings = settings_from(arguments)
    sources = find_sources(arguments.sources)
    if arguments.part:
        sources = part_of(sources, part=arguments.part[0], num_parts=arguments.part[1])
    layout = create_cache(arguments.cache)
    device = prepare_torch(settings, cluster=cluster_address(arguments))
    settings, levels, encoders = settings_on_record(layout, arguments)
    result = ingest(
        sources,
        layout=layout,
        settings=settings,
        encoders=encoders,
        levels=levels,
        engine=open_engine(arguments.engine, settings, ray_address=arguments.ray_address),
        device=device,
        prune=arguments.prune,
        rehash=arguments.rehash,
        is_part=arguments.part is not None,
    )
    return _report_result(result, arguments, "sources")


def _plan(arguments: argparse.Namespace) -> int:
    from latents.cache.refs import require_ref
    from pipeline.estimate import estimate
    from pipeline.refresh import plan_refresh
    from pipeline.show_plan import plan_json, plan_text
    from pipeline.sources import find_sources

    if arguments.prune and not arguments.sources:
        raise ConfigError("--prune compares the record with sources; name them")
    layout = _existing_or_new(arguments.cache, is_new_allowed=bool(arguments.sources))
    if not arguments.sources:
        require_ref(layout, "current")
    settings, levels, encoders = settings_on_record(layout, arguments)
    job = plan_refresh(
        find_sources(arguments.sources) if arguments.sources else None,
        layout=layout,
        settings=settings,
        encoders=encoders,
        levels=levels,
        prune=arguments.prune,
    )
    cost = estimate(
        job.plan, job.snapshot, job.wanted, settings, free_bytes=layout.storage.free_bytes()
    )
    if arguments.json:
        sys.stdout.write(json.dumps(plan_json(job, cost)) + "\n")
    else:
        sys.stdout.write(plan_text(job, cost, num_workers=settings.run.num_workers))
    return 0


def _refresh(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from latents.cache.refs import require_ref
    from pipeline.refresh import refresh
    from pipeline.sources import find_sources

    layout = find_cache(arguments.cache)
    if not arguments.sources:
        require_ref(layout, "current")
    settings, levels, encoders = settings_on_record(layout, arguments)
    device = prepare_torch(settings, cluster=cluster_address(arguments))
    result = refresh(
        find_sources(arguments.sources) if arguments.sources else None,
        layout=layout,
        settings=settings,
        encoders=encoders,
        levels=levels,
        engine=open_engine(arguments.engine, settings, ray_address=arguments.ray_address),
        device=device,
        part=arguments.part,
    )
    return _report_result(result, arguments, "sources")


def _existing_or_new(url: str, *, is_new_allowed: bool) -> CacheLayout:
    """The cache, or where one would be made."""
    from latents.cache.layout import FORMAT_FILE, CacheLayout, check_format
    from latents.cache.open_storage import open_storage

    layout = CacheLayout(open_storage(url))
    if not is_new_allowed or layout.storage.exists(FORMAT_FILE):
        check_format(layout)
    return layout


def _report_result(result: JobResult, arguments: argparse.Namespace, unit: str) -> int:
    if arguments.json:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    else:
        sys.stdout.write(
            f"{result.num_clips_encoded} clips encoded ({result.num_kl_images} images), "
            f"{result.num_already_present} of {result.num_sources} {unit} were there already, "
            f"{result.num_quarantined} quarantined, {result.seconds:.0f} s. "
            f"Commit {result.commit} of {arguments.cache}\n"
        )
        for line in _work_lines(result):
            sys.stdout.write(f"{line}\n")
        if result.num_clips_left:
            sys.stdout.write(f"clips that left with their sources: {result.num_clips_left}\n")
        for what, count in (("sources", result.num_dropped), ("clips", result.num_dropped_clips)):
            if count:
                sys.stdout.write(
                    f"{what} that were taken down before and stay out: {count} "
                    "(`mmldm cache drop --undo` readmits them)\n"
                )
        if result.num_quarantined:
            sys.stdout.write(f"Why: mmldm cache quarantine ls --cache {arguments.cache}\n")
        if arguments.part:
            sys.stdout.write(
                "refs/current stays where it is; once all parts are done, run without --part\n"
            )
        elif result.current_stays:
            sys.stdout.write(f"refs/current stays where it is: {result.current_stays}\n")
    if result.num_sources_with_rows == 0:
        return 1
    return 3 if result.num_quarantined else 0


def _work_lines(result: JobResult) -> Iterator[str]:
    """How fast it went, what was the bottleneck, and what was given up."""
    if result.num_clips_encoded and result.seconds > 0:
        yield (
            f"{result.num_clips_encoded / result.seconds:.2f} clips/s, "
            f"{result.num_windows_encoded / result.seconds:.1f} windows/s ("
            f"{result.num_windows_encoded} windows)"
        )
    if result.busy_shares:
        shares = (f"{stage} {100 * share:.0f} %" for stage, share in result.busy_shares.items())
        yield f"Busy share of the workers' time: {', '.join(shares)}"
    if result.causes:
        causes = (f"{count} x {name}" for name, count in result.causes.items())
        yield f"Given up in this run: {', '.join(causes)}"


def _part(text: str) -> tuple[int, int]:
    part, _, num_parts = text.partition("/")
    if not (part.isdecimal() and num_parts.isdecimal()) or not 1 <= int(part) <= int(num_parts):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted i/n with i from 1 to n, such as 2/8")
    return int(part), int(num_parts)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return seconds
