"""``mmldm sample``: sounding videos from a trained DiT."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latents.devices import device_named
from latents.errors import ConfigError, InterruptedJobError
from pipeline.cli_settings import positive_integer

if TYPE_CHECKING:
    from evaluation.sampling.conditions import GivenWindow
    from evaluation.sampling.models import ModelSources
    from evaluation.sampling.run import SampleRequest, WrittenSamples
    from pipeline.recorded import RecordedEncoding
    from pipeline.sources import Source
    from training.dit.files import TrainedDiT

Commands = argparse._SubParsersAction

_NUM_FROM_NOTHING = 4


def add_sample(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``sample``."""
    parser = commands.add_parser(
        "sample",
        help="a trained DiT -> sounding videos",
        description="Samples sounding videos (svg), pictures for sound (a2v) or sound for pictures "
        "(v2a), and writes them as mp4. Run again, it makes only what is missing.",
    )
    parser.add_argument(
        "dit", metavar="D", help="tiny (bundled), or the folder that `train dit` has written"
    )
    parser.add_argument("--task", choices=("svg", "a2v", "v2a"), default="svg")
    parser.add_argument(
        "--num",
        type=positive_integer,
        metavar="N",
        help=f"samples; default: {_NUM_FROM_NOTHING}, or one for each window given",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path, metavar="S", help="a folder")
    _add_conditions(parser)
    _add_models(parser)
    parser.add_argument("--steps", type=positive_integer, default=50, help="DDIM steps")
    parser.add_argument(
        "--eta", type=float, default=0.0, help="noise of each step: 0 none, 1 as ancestral sampling"
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, metavar="S", help="scale; 1: none, half the work"
    )
    parser.add_argument(
        "--guidance-kind",
        choices=("context", "condition"),
        default="context",
        help="what is left out where guidance moves away from",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=1, help="samples at a time, on a GPU"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_sample)


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--condition",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="a2v, v2a: go by the first window of each of these videos; all samples by that of one",
    )
    parser.add_argument("--cache", metavar="C", help="a2v, v2a: the cache of --clip")
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="KEY[:WINDOW]",
        help="a2v, v2a: go by a window of the cache; may be repeated",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoencoder",
        default="tiny",
        metavar="A",
        help="the one whose encoders made the DiT's latents: tiny (bundled), or a folder; its "
        "decoder may have been fine-tuned since",
    )
    parser.add_argument(
        "--kl-vae",
        default="tiny",
        metavar="V",
        help="the same: tiny (bundled), a folder, an original .ckpt or a hub id",
    )
    parser.add_argument(
        "--vocoder",
        type=Path,
        metavar="FOLDER",
        help="a HiFi-GAN as transformers saves it (safetensors); default: Griffin-Lim",
    )


def _sample(arguments: argparse.Namespace) -> int:
    from evaluation.sampling.run import require_possible
    from training.dit.files import load_dit

    sources, clips = _sources(arguments), list(arguments.clip)
    if len(sources) + len(clips) == 1:  # all samples go by it
        sources, clips = sources * (arguments.num or 1), clips * (arguments.num or 1)
    request = _request(arguments, num_given=len(sources) + len(clips))
    device = device_named(arguments.device, option="--device")
    trained = load_dit(arguments.dit, device=device)
    require_possible(request, trained, num_given=len(sources) + len(clips))
    try:
        written = _write(arguments, request, trained, sources, clips, device)
    except KeyboardInterrupt:
        raise InterruptedJobError(
            signal.SIGINT,
            f"interrupted; every mp4 in {arguments.out} is whole. Run the same command again and "
            "it goes on from there",
        ) from None
    _tell(arguments, written)
    return 0


def _write(
    arguments: argparse.Namespace,
    request: SampleRequest,
    trained: TrainedDiT,
    sources: Sequence[Source],
    clips: Sequence[str],
    device: str,
) -> WrittenSamples:
    from evaluation.sampling.models import load_window_decoder, model_digests
    from evaluation.sampling.run import write_samples
    from pipeline.load_stage import configure_torch
    from pipeline.progress import Tally, show_progress
    from pipeline.recorded import recorded_encoding

    encoding = recorded_encoding(trained.trained_on.recipes, model=arguments.dit)
    configure_torch(encoding.kl_vae_precision)
    models = _models(arguments)
    decoder = load_window_decoder(trained.model.config, encoding, models, device=device)
    made_by = model_digests(arguments.dit, models)
    given = _given(arguments, request, trained, sources, clips, encoding, models, device)
    with show_progress("sampled", request.num, unit="videos") as report:
        return write_samples(
            trained,
            decoder,
            arguments.out,
            request=request,
            given=given,
            made_by=made_by,
            on_sample=lambda done: report(Tally(num_done=done)),
        )


def _given(
    arguments: argparse.Namespace,
    request: SampleRequest,
    trained: TrainedDiT,
    sources: Sequence[Source],
    clips: Sequence[str],
    encoding: RecordedEncoding,
    models: ModelSources,
    device: str,
) -> list[GivenWindow]:
    from evaluation.sampling.cached_windows import windows_of_cache
    from evaluation.sampling.file_windows import windows_of_files

    if request.task == "svg":
        return []
    if clips:
        return windows_of_cache(arguments.cache, clips, request.task, trained=trained)
    return windows_of_files(
        sources, request.task, trained=trained, encoding=encoding, models=models, device=device
    )


def _sources(arguments: argparse.Namespace) -> list[Source]:
    """What is given by file. What is named twice is given twice."""
    from pipeline.sources import find_sources

    if arguments.condition and arguments.clip:
        raise ConfigError("windows are given by --condition or by --clip, not by both")
    if bool(arguments.cache) != bool(arguments.clip):
        raise ConfigError("--cache C and --clip KEY[:WINDOW] go together; give both or neither")
    return [source for argument in arguments.condition for source in find_sources([argument])]


def _request(arguments: argparse.Namespace, *, num_given: int) -> SampleRequest:
    from evaluation.sampling.run import SampleRequest
    from training.diffusion.guidance import GuidanceScales
    from training.dit.sample import SamplingSettings

    if not math.isfinite(arguments.guidance):
        raise ConfigError(f"--guidance is {arguments.guidance}; it must be finite")
    scales = GuidanceScales(video=arguments.guidance, audio=arguments.guidance)
    return SampleRequest(
        task=arguments.task,
        num=arguments.num or num_given or _NUM_FROM_NOTHING,
        seed=arguments.seed,
        settings=SamplingSettings(
            num_steps=arguments.steps,
            eta=arguments.eta,
            guidance=arguments.guidance_kind,
            scales=scales,
        ),
        batch_size=arguments.batch_size,
    )


def _models(arguments: argparse.Namespace) -> ModelSources:
    from evaluation.sampling.models import ModelSources

    return ModelSources(
        autoencoder=arguments.autoencoder,
        kl_vae=arguments.kl_vae,
        vocoder=arguments.vocoder,
    )


def _tell(arguments: argparse.Namespace, written: WrittenSamples) -> None:
    num = len(written.files)
    if arguments.json:
        files = [str(path) for path in written.files]
        line = json.dumps({"files": files, "num_written": num - written.num_kept})
    else:
        kept = f", {written.num_kept} of them there already" if written.num_kept else ""
        line = f"{arguments.out}: {num} samples{kept}, {written.files[0].name} the first"
    sys.stdout.write(line + "\n")
