"""What commands share: the options that say what is to be made, and what they come to."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from latents.devices import device_named
from latents.errors import ConfigError
from latents.fields import LEVELS, Level
from latents.store.kinds import STORE_NAMES

if TYPE_CHECKING:
    from latents.cache.layout import CacheLayout
    from pipeline.recipes import Encoders
    from pipeline.run import Engine
    from pipeline.settings import IngestSettings

Commands = argparse._SubParsersAction


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """The cache, and what is to be made in it."""
    parser.add_argument("--cache", required=True, metavar="C", help="a folder, or a URL (s3://...)")
    add_making_options(parser)


def add_making_options(parser: argparse.ArgumentParser) -> None:
    """What is to be made in a cache, and how it is told."""
    parser.add_argument(
        "--levels", type=_levels, help="of clip,kl,perceptual; default: what the cache has"
    )
    parser.add_argument(
        "--kl-vae", metavar="V", help="tiny (bundled), a folder, an original .ckpt, or a hub id"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="A",
        help="encoders of the perceptual level: tiny (bundled), or a folder",
    )
    parser.add_argument("--preset", action="append", default=[], metavar="P")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one per core")
    parser.add_argument(
        "--store",
        choices=STORE_NAMES,
        help="format of new shards; default: tar; a cache may hold both",
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def settings_on_record(
    layout: CacheLayout, arguments: argparse.Namespace
) -> tuple[IngestSettings, tuple[Level, ...], Encoders]:
    """Settings, levels and encoders of the current latents, except for what is given here."""
    from latents.cache.refs import read_ref
    from latents.models.identity_memo import kl_vae_identity, modal_identity
    from pipeline.recipes import Encoders
    from pipeline.recorded import recorded_kl_vae, recorded_modal, recorded_settings

    has_current = read_ref(layout, "current") is not None
    settings = settings_from(arguments, base=recorded_settings(layout) if has_current else None)
    levels = arguments.levels or levels_on_record(layout, settings.autoencoder.source)
    names_kl_vae = _names_kl_vae(arguments, settings)
    kl_vae = None if names_kl_vae else recorded_kl_vae(layout)
    modal = None
    if "perceptual" in levels:
        if not settings.autoencoder.source:
            modal = recorded_modal(layout)
        if modal is None:
            modal = modal_identity(_autoencoder_source(settings))
    if kl_vae is None and has_current and set(levels) != {"clip"} and not names_kl_vae:
        raise ConfigError(
            f"{layout.url} has no kl latents whose KL-VAE could be used again; name one with "
            "--kl-vae (tiny is the bundled one)"
        )
    encoders = Encoders(kl_vae=kl_vae or kl_vae_identity(settings.kl_vae.source), modal=modal)
    return _with_precisions(settings), levels, encoders


def _with_precisions(settings: IngestSettings) -> IngestSettings:
    """Settled for the device that is named, else for the one that is here."""
    from pipeline.precision import has_auto, with_precisions

    device = settings.run.device
    if has_auto(settings) and device == "auto":
        device = device_named(device, option="run.device")
    return with_precisions(settings, device=device)


def _names_kl_vae(arguments: argparse.Namespace, settings: IngestSettings) -> bool:
    """Whether an option, a preset or an override says which KL-VAE is wanted."""
    from pipeline.settings import KLVAESettings

    is_default = settings.kl_vae.source == KLVAESettings().source
    given = (override.partition("=")[0].strip() for override in _overrides(arguments))
    return not is_default or "kl_vae.source" in given


def levels_on_record(layout: CacheLayout, autoencoder: str | None) -> tuple[Level, ...]:
    """The levels of the current latents, else ``kl``; the perceptual one where it can be made."""
    from latents.cache.refs import read_ref

    current = read_ref(layout, "current")
    fields = set(current.recipes) if current else set()
    kept = {level for level, names in LEVELS.items() if set(names) <= fields} or {"kl"}
    kept |= {"kl", "perceptual"} if autoencoder else set()
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


def settings_from(
    arguments: argparse.Namespace, base: Mapping[str, Any] | None = None
) -> IngestSettings:
    """The settings that presets and options come to, over those of ``base``."""
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
    if arguments.store is not None:
        overrides.append(f"run.store={arguments.store}")
    return overrides


def cluster_address(arguments: argparse.Namespace) -> str | None:
    """Of the Ray cluster that the work is done on; None where it is done on this machine."""
    if arguments.engine != "ray":
        return None
    return arguments.ray_address or os.environ.get("RAY_ADDRESS")


def prepare_torch(settings: IngestSettings, *, cluster: str | None = None) -> str:
    """Sets the process-wide switches that latents depend on; returns the device's name.

    A GPU that is asked for need not be in this machine where a cluster does the work.
    """
    from pipeline.load_stage import configure_torch
    from pipeline.precision import precisions

    configure_torch(precisions(settings).kl)
    if cluster is not None and settings.run.device == "cuda":
        return "cuda"
    return device_named(settings.run.device, option="run.device")


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
        encoder_gpus=settings.run.encoder_gpus,
        attempts=settings.run.worker_attempts,
        address=ray_address or os.environ.get("RAY_ADDRESS"),
    )


def _levels(text: str) -> tuple[Level, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    chosen = tuple(level for level in LEVELS if level in names)
    if len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted some of {','.join(LEVELS)}")
    return chosen


def positive_integer(text: str) -> int:
    """A count given as an argument; raises `argparse.ArgumentTypeError` below 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
