"""``mmldm report`` and ``demo``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import positive_integer

if TYPE_CHECKING:
    from evaluation.report.write import ReportResult

Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the evaluation's commands."""
    _add_demo(commands)
    _add_report(commands)


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="the main job, whole and small: scenes -> cache -> verified -> report",
        description="Makes sounding scenes (or takes your clips), ingests them into OUT/cache, "
        "verifies the cache and writes OUT/report.html. Run again, it does only what is left. "
        "Clips that are quarantined are named and are no failure.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="OUT", help="a folder")
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="your videos; no scenes then")
    parser.add_argument("--engine", choices=("local", "ray"), default="ray")
    parser.add_argument("--num-clips", type=positive_integer, default=48, help="scenes to make")
    parser.add_argument("--seconds", type=positive_integer, default=4, help="length of a scene")
    parser.set_defaults(run=_demo)


def _add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="a cache -> one HTML page: what is in it, and what its latents hold",
        description="Writes one self-contained page: counts, statistics, quarantine, and clips "
        "beside what the KL-VAE makes of their latents, with sound.",
    )
    parser.add_argument("--cache", required=True, type=Path, metavar="C")
    parser.add_argument("--out", required=True, type=Path, metavar="R.html")
    parser.add_argument("--num-clips", type=positive_integer, default=8, help="clips to show")
    parser.add_argument(
        "--kl-vae",
        default="tiny",
        metavar="V",
        help="the one that made the cache: tiny (bundled), a folder, an original .ckpt or a hub "
        "id; its decoder may have been fine-tuned since",
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=_report)


def _demo(arguments: argparse.Namespace) -> int:
    from evaluation.demo import run_demo
    from pipeline.cli import open_engine, prepare_torch
    from pipeline.settings import IngestSettings

    settings = IngestSettings()
    run_demo(
        arguments.out,
        clips=arguments.clips,
        num_clips=arguments.num_clips,
        seconds=arguments.seconds,
        settings=settings,
        device=prepare_torch(settings),
        open_engine=lambda: open_engine(arguments.engine, settings),
        say=_write,
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from evaluation.report.write import count_shown, write_report
    from pipeline.cli import prepare_torch
    from pipeline.progress import Tally, show_progress
    from pipeline.settings import IngestSettings

    settings = IngestSettings()
    device = prepare_torch(settings)
    num_shown = count_shown(arguments.cache, num_clips=arguments.num_clips)
    with show_progress("compared", num_shown, unit="clips") as report:
        result = write_report(
            arguments.cache,
            arguments.out,
            kl_vae=arguments.kl_vae,
            num_clips=arguments.num_clips,
            device=device,
            num_threads=settings.run.num_workers,
            on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
        )
    _write(json.dumps(asdict(result)) if arguments.json else _summary(result))
    return 0


def _summary(result: ReportResult) -> str:
    if result.mean_psnr_db is None or result.mean_mel_error_db is None:
        return f"{result.path}: {len(result.clips)} clips, none of them to be had to compare with"
    return (
        f"{result.path}: {len(result.clips)} clips, PSNR {result.mean_psnr_db:.2f} dB, "
        f"mel error {result.mean_mel_error_db:.2f} dB"
    )


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
