"""``mmldm calibrate``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from latents.errors import ConfigError
from pipeline.cli_settings import Commands, positive_integer

if TYPE_CHECKING:
    from latents.cache.layout import CacheLayout
    from pipeline.settings import IngestSettings


def add_calibrate(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the command."""
    parser = commands.add_parser(
        "calibrate",
        help="show on probe clips that a faster precision is as good, so that it may be used",
        description="Encodes probe clips in full precision and in the one that is asked for, on "
        "the same device, and writes how far the means are apart (relative L2) and what decoded "
        "pictures lose (PSNR). Latents in bf16 or by a compiled model are made only where this is "
        "within bounds. Exit status: 0 within bounds, 1 not, 2 wrong use.",
    )
    parser.add_argument(
        "probes", nargs="+", metavar="PROBE", help="as the sources of `mmldm ingest`"
    )
    written = parser.add_mutually_exclusive_group(required=True)
    written.add_argument("--cache", metavar="C", help="the cache whose latents are to be made so")
    written.add_argument(
        "--out", type=Path, metavar="FILE", help="to be named as kl_vae.calibration"
    )
    parser.add_argument(
        "--kl-vae",
        metavar="V",
        default="tiny",
        help="tiny (bundled, the default), a folder, an original .ckpt, or a hub id",
    )
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--num-clips", type=positive_integer, default=16, metavar="N")
    parser.add_argument("--preset", action="append", default=[], metavar="P")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from latents.cache.layout import create_cache
    from latents.devices import device_named
    from pipeline.calibrate import calibrate
    from pipeline.calibration import write_calibration
    from pipeline.calibration_bounds import wants_calibration
    from pipeline.precision import with_precisions
    from pipeline.progress import Tally, show_progress
    from pipeline.sources import find_sources

    layout = create_cache(arguments.cache) if arguments.cache else None
    settings = _settings(arguments, layout)
    device = device_named(settings.run.device, option="run.device")
    settings = with_precisions(settings, device=device)
    if not wants_calibration(settings):
        raise ConfigError(
            f"{settings.kl_vae.precision} needs no calibration; name --precision bf16, --compile, "
            "or both"
        )
    probes = find_sources(arguments.probes)
    with show_progress("calibrated", arguments.num_clips, unit="clips") as report:
        found = calibrate(
            probes,
            settings=settings,
            device=device,
            num_clips=arguments.num_clips,
            on_clip=lambda done: report(Tally(num_done=done, num_clips=done)),
        )
    name = write_calibration(found, to=layout or arguments.out)
    if arguments.json:
        sys.stdout.write(
            json.dumps({**asdict(found), "is_within_bounds": found.is_within_bounds}) + "\n"
        )
    else:
        verdict = "may be used" if found.is_within_bounds else "may not be used"
        sys.stdout.write(f"{found.way} {verdict}: {found.figures}. Written to {name}\n")
    return 0 if found.is_within_bounds else 1


def _settings(arguments: argparse.Namespace, layout: CacheLayout | None) -> IngestSettings:
    """The cache's on record, or the default ones, with what is given here."""
    from latents.cache.refs import read_ref
    from latents.config import load_config
    from pipeline.recorded import recorded_settings
    from pipeline.settings import IngestSettings

    has_current = layout is not None and read_ref(layout, "current") is not None
    given = {
        "kl_vae.source": json.dumps(arguments.kl_vae),
        "kl_vae.precision": arguments.precision or "auto",
        "kl_vae.compile": json.dumps(arguments.compile),
    }
    return load_config(
        IngestSettings,
        kind="ingest",
        base=recorded_settings(layout) if layout is not None and has_current else None,
        presets=arguments.preset,
        overrides=[*arguments.overrides, *(f"{key}={value}" for key, value in given.items())],
    )
