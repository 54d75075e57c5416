"""``mmldm report``, ``demo``, ``sample`` and ``cache diff``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.cli_sample import add_sample
from latents.errors import ConfigError
from pipeline.cli_settings import positive_integer

if TYPE_CHECKING:
    from evaluation.drift.compare import Drift, RefPair
    from evaluation.report.trained import TrainedModels
    from evaluation.report.write import ReportResult

Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the evaluation's commands."""
    _add_demo(commands)
    _add_report(commands)
    add_sample(commands)


def add_cache_verbs(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Mounts the verb of ``mmldm cache`` that measures latents."""
    parser = verbs.add_parser(
        "diff",
        help="how far the latents of two refs are apart, as after an encoder update",
        description="Compares two refs, such as `previous` and `current`: the parts of the recipes "
        "that differ, the clips that only one has, and on some clips that both have the distance "
        "of their posteriors.",
    )
    parser.add_argument("refs", nargs=2, metavar="REF", help="distances are relative to the first")
    parser.add_argument("--cache", required=True, metavar="C", help="a folder, or a URL (s3://...)")
    parser.add_argument(
        "--num-clips", type=positive_integer, default=32, help="clips to read, spread evenly"
    )
    parser.add_argument(
        "--kl-vae",
        metavar="V",
        help="also decode the kl level with this one, where its encoder made it: tiny (bundled), "
        "a folder, an original .ckpt or a hub id",
    )
    parser.add_argument(
        "--decode-anyway", action="store_true", help="also where another encoder made it"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=_diff)


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="the main job, whole and small: scenes -> cache -> models -> samples -> report",
        description="Makes sounding scenes (or takes your clips), ingests them into OUT/cache, "
        "fine-tunes the bundled autoencoder and DiT on it, samples sounding videos and writes "
        "OUT/report.html. Run again, it does only what is left, and ends with the same cache and "
        "models as a run that was never stopped. Clips that are quarantined are named and are no "
        "failure.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="OUT", help="a folder")
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="your videos; no scenes then")
    parser.add_argument("--engine", choices=("local", "ray"), default="ray")
    parser.add_argument("--num-clips", type=positive_integer, default=48, help="scenes to make")
    parser.add_argument("--seconds", type=positive_integer, default=4, help="length of a scene")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train from nothing, not the bundled models"
    )
    parser.set_defaults(run=_demo)


def _add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="a cache -> one HTML page: what is in it, and what its latents hold",
        description="Writes one self-contained page: counts, statistics, quarantine, and clips "
        "beside what the KL-VAE makes of their latents, with sound; of models, if they are named, "
        "what the autoencoder's latents hold, how a DiT's training went, and samples.",
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
    parser.add_argument(
        "--autoencoder",
        metavar="A",
        help="also show what the perceptual level holds, by the autoencoder that made it: tiny "
        "(bundled), or a folder",
    )
    parser.add_argument(
        "--dit",
        metavar="D",
        help="also show how the training of this DiT went: tiny (bundled), or the folder that "
        "`train dit` has written",
    )
    parser.add_argument(
        "--samples",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="S",
        help="also show what `sample` has written to these folders",
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.1,
        metavar="P",
        help="share of the sources that training held out, as its data.validation_share; "
        "default: 0.1",
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=_report)


def _demo(arguments: argparse.Namespace) -> int:
    from evaluation.demo.plan import DemoPlan, demo_training
    from evaluation.demo.run import run_demo
    from pipeline.cli_settings import open_engine, prepare_torch
    from pipeline.settings import IngestSettings

    settings = IngestSettings()
    plan = DemoPlan(
        ingest=settings,
        training=demo_training(from_scratch=arguments.from_scratch),
        num_clips=arguments.num_clips,
        seconds=arguments.seconds,
    )
    run_demo(
        arguments.out,
        clips=arguments.clips,
        plan=plan,
        device=prepare_torch(settings),
        open_engine=lambda: open_engine(arguments.engine, settings),
        say=_write,
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from evaluation.report.write import count_shown, write_report
    from pipeline.cli_settings import prepare_torch
    from pipeline.progress import Tally, show_progress
    from pipeline.settings import IngestSettings

    models = _trained_models(arguments)
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
            models=models,
            on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
        )
    _write(json.dumps(asdict(result)) if arguments.json else _summary(result))
    return 0


def _trained_models(arguments: argparse.Namespace) -> TrainedModels | None:
    from evaluation.report.trained import TrainedModels

    if arguments.autoencoder:
        return TrainedModels(
            autoencoder=arguments.autoencoder,
            dit=arguments.dit,
            samples=tuple(arguments.samples),
            validation_share=arguments.validation_share,
        )
    if arguments.dit or arguments.samples:
        option = "--dit" if arguments.dit else "--samples"
        raise ConfigError(
            f"{option} needs the autoencoder that made the cache's perceptual level; name it with "
            "--autoencoder, a folder or tiny (bundled)"
        )
    return None


def _diff(arguments: argparse.Namespace) -> int:
    from evaluation.drift.compare import RefPair
    from evaluation.drift.text import drift_lines
    from latents.cache.layout import find_cache

    if arguments.decode_anyway and not arguments.kl_vae:
        raise ConfigError("--decode-anyway needs a KL-VAE to decode with; name one with --kl-vae")
    a, b = arguments.refs
    pair = RefPair(find_cache(arguments.cache), a, b, num_clips=arguments.num_clips)
    drift = _decode_and_compare(pair, arguments) if arguments.kl_vae else pair.compare()
    if arguments.json:
        _write(json.dumps(asdict(drift)))
    else:
        for line in drift_lines(drift):
            _write(line)
    return 0


def _decode_and_compare(pair: RefPair, arguments: argparse.Namespace) -> Drift:
    from evaluation.drift.pictures import CompareDecodings
    from latents.models.kl_vae import load_kl_vae
    from pipeline.cli_settings import prepare_torch
    from pipeline.progress import Tally, show_progress
    from pipeline.settings import IngestSettings

    settings, tally = IngestSettings(), Tally()
    kl_vae = load_kl_vae(arguments.kl_vae, device=prepare_torch(settings))
    with show_progress("decoded", pair.num_probes("kl"), unit="clips") as report:

        def on_clip() -> None:
            tally.num_done += 1
            report(tally)

        decode = CompareDecodings(
            kl_vae,
            name=arguments.kl_vae,
            weights=kl_vae.identity.weights_digest,
            latent_channels=kl_vae.latent_channels,
            anyway=arguments.decode_anyway,
            num_threads=settings.run.num_workers,
            on_clip=on_clip,
        )
        return pair.compare(decode=decode)


def _summary(result: ReportResult) -> str:
    if result.mean_psnr_db is None or result.mean_mel_error_db is None:
        parts = [
            f"{result.path}: {len(result.clips)} clips, none of them to be had to compare with"
        ]
    else:
        parts = [
            f"{result.path}: {len(result.clips)} clips, PSNR {result.mean_psnr_db:.2f} dB, "
            f"mel error {result.mean_mel_error_db:.2f} dB"
        ]
    if result.video_ratio is not None:
        kind = "held-out windows" if result.are_held_out else "windows, none of them held out"
        parts.append(
            f"{result.num_windows} {kind}: error {result.video_ratio:.3f} of the mean frame's, "
            f"sound {result.audio_error:.3f}"
        )
    if result.num_samples is not None:
        parts.append(f"{result.num_samples} samples")
    return "; ".join(parts)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
