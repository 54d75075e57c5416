"""``mmldm synth``, ``ingest`` and ``refresh``."""

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
    from latents.models.kl_vae import EncoderIdentity
    from pipeline.run import Engine, JobResult
    from pipeline.settings import IngestSettings

Command = Callable[[argparse.Namespace], int]
Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the pipeline's commands."""
    _add_synth(commands)
    _add_ingest(commands)
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
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, video, list (.txt, .lst, .jsonl), or scenes:SEED:NUM[:SECONDS]",
    )
    parser.add_argument("--levels", type=_levels, default=("kl",), help="clip, kl or clip,kl")
    _add_job_options(parser)
    parser.set_defaults(run=_ingest)


def _add_refresh(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "refresh",
        help="clip level -> kl level with another KL-VAE; no video is opened",
        description="Encodes the kl level anew from the clip level, with the settings on record "
        "except those given here, and makes it the current one. The old latents stay.",
    )
    _add_job_options(parser, kl_vae_required=True)
    parser.set_defaults(run=_refresh)


def _add_job_options(parser: argparse.ArgumentParser, *, kl_vae_required: bool = False) -> None:
    parser.add_argument("--cache", required=True, type=Path, metavar="C")
    parser.add_argument(
        "--kl-vae",
        metavar="V",
        required=kl_vae_required,
        help="tiny (bundled), a folder, an original .ckpt, or a hub id",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one per core")
    parser.add_argument("--ray-address", metavar="A", help="default: RAY_ADDRESS, else a local one")
    parser.add_argument("--preset", action="append", default=[], metavar="P")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


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
    from pipeline.sources import find_sources

    settings = _settings(arguments)
    sources = find_sources(arguments.sources)
    layout = create_cache(arguments.cache)
    device = prepare_torch(settings)
    result = ingest(
        sources,
        layout=layout,
        settings=settings,
        encoder=encoder_identity(settings),
        levels=arguments.levels,
        engine=open_engine(arguments.engine, settings, ray_address=arguments.ray_address),
        device=device,
    )
    return _report_result(result, arguments, "sources")


def _refresh(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import find_cache
    from pipeline.recorded import recorded_settings
    from pipeline.refresh import refresh_kl

    layout = find_cache(arguments.cache)
    settings = _settings(arguments, base=recorded_settings(layout))
    device = prepare_torch(settings)
    result = refresh_kl(
        layout=layout,
        settings=settings,
        encoder=encoder_identity(settings),
        engine=open_engine(arguments.engine, settings, ray_address=arguments.ray_address),
        device=device,
    )
    return _report_result(result, arguments, "clips")


def _settings(
    arguments: argparse.Namespace, base: Mapping[str, Any] | None = None
) -> IngestSettings:
    from latents.config import load_config
    from pipeline.settings import IngestSettings

    overrides = list(arguments.overrides)
    if arguments.kl_vae is not None:
        overrides.append(f"kl_vae.source={json.dumps(arguments.kl_vae)}")
    if arguments.workers is not None:
        overrides.append(f"run.workers={arguments.workers}")
    return load_config(
        IngestSettings, kind="ingest", base=base, presets=arguments.preset, overrides=overrides
    )


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


def encoder_identity(settings: IngestSettings) -> EncoderIdentity:
    """Identity of the KL-VAE that the settings name."""
    from latents.models.kl_vae import load_kl_vae

    return load_kl_vae(settings.kl_vae.source, precision=settings.kl_vae.precision).identity


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
        if result.num_quarantined:
            sys.stdout.write(f"Why: mmldm cache quarantine ls --cache {arguments.cache}\n")
    if result.num_sources_with_rows == 0:
        return 1
    return 3 if result.num_quarantined else 0


def _levels(text: str) -> tuple[Level, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    chosen = tuple(level for level in LEVELS if level in names)
    if len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted clip, kl or clip,kl")
    return chosen


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
