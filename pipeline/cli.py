"""``mmldm synth``, ``ingest``, ``plan`` and ``refresh``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latents.errors import ConfigError
from latents.fields import LEVELS, Level

if TYPE_CHECKING:
    from latents.cache.layout import CacheLayout
    from pipeline.recipes import Encoders
    from pipeline.run import Engine, JobResult
    from pipeline.settings import IngestSettings

Command = Callable[[argparse.Namespace], int]
Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the pipeline's commands."""
    _add_synth(commands)
    _add_ingest(commands)
    _add_plan(commands)
    _add_refresh(commands)


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
        help="folder, video, list (.txt, .lst, .jsonl), or scenes:SEED:NUM[:SECONDS]"
        + ("; default: all sources on record" if nargs == "*" else ""),
    )


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """The cache, and what is to be made in it."""
    parser.add_argument("--cache", required=True, metavar="C", help="a folder, or a URL (s3://...)")
    parser.add_argument(
        "--levels", type=_levels, help="of clip,kl,perceptual; default: what the cache has"
    )
    parser.add_argument(
        "--kl-vae", metavar="V", help="tiny (bundled), a folder, an original .ckpt, or a hub id"
    )
    parser.add_argument(
        "--autoencoder", metavar="A", help="folder of the encoders of the perceptual level"
    )
    parser.add_argument("--preset", action="append", default=[], metavar="P")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one per core")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


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
    settings = _settings(arguments)
    sources = find_sources(arguments.sources)
    if arguments.part:
        sources = part_of(sources, part=arguments.part[0], num_parts=arguments.part[1])
    layout = create_cache(arguments.cache)
    device = prepare_torch(settings)
    levels = arguments.levels or _levels_on_record(layout, arguments.autoencoder)
    result = ingest(
        sources,
        layout=layout,
        settings=settings,
        encoders=named_encoders(settings, levels),
        levels=levels,
        engine=open_engine(arguments.engine, settings, ray_address=arguments.ray_address),
        device=device,
        prune=arguments.prune,
        rehash=arguments.rehash,
        is_part=arguments.part is not None,
    )
    return _report_result(result, arguments, "sources")


def _plan(arguments: argparse.Namespace) -> int:
    from pipeline.estimate import estimate
    from pipeline.refresh import plan_refresh
    from pipeline.show_plan import plan_json, plan_text
    from pipeline.sources import find_sources

    if arguments.prune and not arguments.sources:
        raise ConfigError("--prune compares the record with sources; name them")
    layout = _existing_or_new(arguments.cache, is_new_allowed=bool(arguments.sources))
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
    from pipeline.refresh import refresh
    from pipeline.sources import find_sources

    layout = find_cache(arguments.cache)
    settings, levels, encoders = settings_on_record(layout, arguments)
    device = prepare_torch(settings)
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
    from latents.cache.storage import open_storage

    layout = CacheLayout(open_storage(url))
    if not is_new_allowed or layout.storage.exists(FORMAT_FILE):
        check_format(layout)
    return layout


def settings_on_record(
    layout: CacheLayout, arguments: argparse.Namespace
) -> tuple[IngestSettings, tuple[Level, ...], Encoders]:
    """Settings, levels and encoders of the current latents, except for what is given here."""
    from latents.cache.refs import read_ref
    from latents.models.identity_memo import kl_vae_identity, modal_identity
    from pipeline.recipes import Encoders
    from pipeline.recorded import recorded_kl_vae, recorded_modal, recorded_settings

    has_current = read_ref(layout, "current") is not None
    settings = _settings(arguments, base=recorded_settings(layout) if has_current else None)
    levels = arguments.levels or _levels_on_record(layout, settings.autoencoder.source)
    kl_vae = None if _names_kl_vae(arguments, settings) else recorded_kl_vae(layout)
    modal = None
    if "perceptual" in levels:
        if not settings.autoencoder.source:
            modal = recorded_modal(layout)
        if modal is None:
            modal = modal_identity(_autoencoder_source(settings))
    encoders = Encoders(kl_vae=kl_vae or kl_vae_identity(settings.kl_vae.source), modal=modal)
    return settings, levels, encoders


def _names_kl_vae(arguments: argparse.Namespace, settings: IngestSettings) -> bool:
    """Whether an option, a preset or an override says which KL-VAE is wanted."""
    from pipeline.settings import KLVAESettings

    is_default = settings.kl_vae.source == KLVAESettings().source
    given = (override.partition("=")[0].strip() for override in _overrides(arguments))
    return not is_default or "kl_vae.source" in given


def _levels_on_record(layout: CacheLayout, autoencoder: str | None) -> tuple[Level, ...]:
    """The levels of the current latents and ``kl``; the perceptual one where it can be made."""
    from latents.cache.refs import read_ref

    current = read_ref(layout, "current")
    fields = set(current.recipes) if current else set()
    kept = {level for level, names in LEVELS.items() if set(names) <= fields} | {"kl"}
    kept |= {"perceptual"} if autoencoder else set()
    return tuple(level for level in LEVELS if level in kept)


def named_encoders(settings: IngestSettings, levels: tuple[Level, ...]) -> Encoders:
    """Identities of the encoders that the settings name."""
    from latents.models.identity_memo import kl_vae_identity, modal_identity
    from pipeline.recipes import Encoders

    is_needed = "perceptual" in levels
    return Encoders(
        kl_vae=kl_vae_identity(settings.kl_vae.source),
        modal=modal_identity(_autoencoder_source(settings)) if is_needed else None,
    )


def _autoencoder_source(settings: IngestSettings) -> str:
    if not settings.autoencoder.source:
        raise ConfigError(
            "the perceptual level is made by an autoencoder's encoders; name its folder with "
            "--autoencoder, or leave the level out with --levels"
        )
    return settings.autoencoder.source


def _settings(
    arguments: argparse.Namespace, base: Mapping[str, Any] | None = None
) -> IngestSettings:
    from latents.config import load_config
    from pipeline.settings import IngestSettings

    return load_config(
        IngestSettings,
        kind="ingest",
        base=base,
        presets=arguments.preset,
        overrides=_overrides(arguments),
    )


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """``--set``, and the options that stand for one."""
    overrides = list(arguments.overrides)
    if arguments.kl_vae is not None:
        overrides.append(f"kl_vae.source={json.dumps(arguments.kl_vae)}")
    if arguments.autoencoder is not None:
        overrides.append(f"autoencoder.source={json.dumps(arguments.autoencoder)}")
    if arguments.workers is not None:
        overrides.append(f"run.workers={arguments.workers}")
    return overrides


def prepare_torch(settings: IngestSettings) -> str:
    """Sets the process-wide switches that latents depend on; returns the device's name."""
    import torch

    from pipeline.stages import configure_torch

    configure_torch(settings.kl_vae.precision)
    device = settings.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch finds no GPU; use run.device=cpu")
    return device


def open_engine(
    name: Literal["local", "ray"], settings: IngestSettings, *, ray_address: str | None = None
) -> Engine:
    """The engine of that name."""
    if name == "local":
        from pipeline.engine_local import LocalEngine

        return LocalEngine(num_workers=settings.run.num_workers)
    from pipeline.engine_ray import RayEngine

    return RayEngine(
        num_workers=settings.run.workers,
        in_flight_bytes=settings.run.in_flight_bytes,
        address=ray_address or os.environ.get("RAY_ADDRESS"),
    )


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
        if result.num_clips_left:
            sys.stdout.write(f"clips that left with their sources: {result.num_clips_left}\n")
        if result.num_dropped:
            sys.stdout.write(
                f"sources that were taken down before and stay out: {result.num_dropped} "
                "(`mmldm cache drop --undo` readmits them)\n"
            )
        if result.num_quarantined:
            sys.stdout.write(f"Why: mmldm cache quarantine ls --cache {arguments.cache}\n")
        if arguments.part:
            sys.stdout.write(
                "refs/current stays where it is; once all parts are done, run without --part\n"
            )
        elif not result.is_current and result.num_sources_with_rows:
            sys.stdout.write(
                "refs/current keeps its recipes, since other sources on record have not been "
                "refreshed; `mmldm refresh` without SOURCE does them all\n"
            )
    if result.num_sources_with_rows == 0:
        return 1
    return 3 if result.num_quarantined else 0


def _levels(text: str) -> tuple[Level, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    chosen = tuple(level for level in LEVELS if level in names)
    if len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted some of {','.join(LEVELS)}")
    return chosen


def _part(text: str) -> tuple[int, int]:
    part, _, num_parts = text.partition("/")
    if not (part.isdecimal() and num_parts.isdecimal()) or not 1 <= int(part) <= int(num_parts):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted i/n with i from 1 to n, such as 2/8")
    return int(part), int(num_parts)


def positive_integer(text: str) -> int:
    """A count given as an argument; raises `argparse.ArgumentTypeError` below 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return seconds
