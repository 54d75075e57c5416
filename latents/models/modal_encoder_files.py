"""Where modal encoders come from and are kept: an autoencoder's folder, or a seed.

A folder holds ``config.json``, with a table for each of the autoencoder's parts, and
``model.safetensors``, with a prefix for each. Only ``video_encoder`` and ``audio_encoder`` are read
here, and of those everything must fit: a tensor or key too few or too many is an error.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latents.durable import reason, replace_file
from latents.errors import ModelError
from latents.models.encoder_blocks import Start, draw_weights
from latents.models.frozen_modal_encoders import ModalEncoders, architecture_of
from latents.models.modal_encoder_config import (
    AUDIO_CONFIGS,
    VIDEO_CONFIGS,
    AudioEncoderConfig,
    ConfigName,
    VideoEncoderConfig,
)
from latents.models.modal_encoders import AudioEncoder, VideoEncoder
from latents.recipe import canonical_json, sha256_hex

if TYPE_CHECKING:  # the KL-VAE brings diffusers, which nothing here needs
    from latents.models.kl_vae import Precision

Config = TypeVar("Config", VideoEncoderConfig, AudioEncoderConfig)
Encoder = TypeVar("Encoder", VideoEncoder, AudioEncoder)

BUNDLED_AUTOENCODER = Path(__file__).parent / "tiny_autoencoder"
"""The autoencoder that belongs to the bundled KL-VAE; its name is ``tiny``."""

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
_VIDEO = "video_encoder"
_AUDIO = "audio_encoder"
_MAX_NUMBER = 2**16
_MAX_VALUES = 64
_MAX_BLOCKS = 16
"""Bounds of a config: beyond any architecture, and little enough to build in a moment."""
_MAY_BE_MISSING = ("shortcut_kernel",)
"""Keys that are left out at their default: there were configs before there was the key."""
_SAVED_WITH = "encoders"
"""Key of the metadata under which weights name the config they were saved with."""


def load_modal_encoders(
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
) -> ModalEncoders:
    """The modal encoders of an autoencoder's folder.

    Args:
        folder: ``tiny`` for the bundled ones, or a folder with config.json and model.safetensors;
            the autoencoder's other parts are not read.
        precision: See `ModalEncoders`.
        device: See `ModalEncoders`.
        batch_size: See `ModalEncoders`.

    Raises:
        ModelError: Nothing is there, it cannot be read, or weights and config do not fit.
    """
    config_path, weights_path = modal_encoder_files(folder)
    tables = _read_tables(config_path)
    video_config = _config(VideoEncoderConfig, tables, _VIDEO, config_path)
    audio_config = _config(AudioEncoderConfig, tables, _AUDIO, config_path)
    try:
        with torch.device("meta"):
            video, audio = VideoEncoder(video_config), AudioEncoder(audio_config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{config_path}: no encoder can be built: {error}") from error
    tensors = _read_tensors(weights_path, saved_with=_encoders_digest(video, audio))
    video = _with_weights(video, tensors, _VIDEO, weights_path)
    audio = _with_weights(audio, tensors, _AUDIO, weights_path)
    return ModalEncoders(video, audio, precision=precision, device=device, batch_size=batch_size)


def modal_encoder_files(folder: str | Path) -> tuple[Path, Path]:
    """The config and the weights that `load_modal_encoders` reads; ``tiny``: those bundled."""
    root = BUNDLED_AUTOENCODER if str(folder) == "tiny" else Path(folder).expanduser()
    return root / CONFIG_FILE, root / MODEL_FILE


def save_modal_encoders(
    folder: Path,
    video: VideoEncoder,
    audio: AudioEncoder,
    extra_tensors: Mapping[str, Tensor] | None = None,
    *,
    extra_tables: Mapping[str, Any] | None = None,
) -> None:
    """Write an autoencoder's folder, each file atomically.

    Killed between its two files, it leaves a folder that is refused when loaded, unless the configs
    are the same.

    Args:
        folder: Created if it does not exist; its two files are replaced.
        video: Saved in float32.
        audio: Saved in float32.
        extra_tensors: Weights of the autoencoder's other parts, by their full names, as they are.
        extra_tables: Configs of the other parts, as JSON values.

    Raises:
        ModelError: A weight of an encoder is not finite, or the folder cannot be written.
        ValueError: An extra name is one of the encoders'.
    """
    extra_tensors, extra_tables = extra_tensors or {}, extra_tables or {}
    taken = [
        name for name in (*extra_tensors, *extra_tables) if name.split(".")[0] in (_VIDEO, _AUDIO)
    ]
    if taken:
        raise ValueError(f"{taken[0]} is a name of the encoders; extra parts need other names")
    encoders = _named_weights(video, _VIDEO) | _named_weights(audio, _AUDIO)
    bad = [name for name, tensor in encoders.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} weights are not finite, first {bad[0]}; nothing was written. "
            "Save an earlier state of the training"
        )
    extra = {name: tensor.detach().cpu().contiguous() for name, tensor in extra_tensors.items()}
    # One key only: safetensors writes several in no fixed order.
    metadata = {_SAVED_WITH: _encoders_digest(video, audio)}
    tables = {_VIDEO: architecture_of(video), _AUDIO: architecture_of(audio), **extra_tables}
    text = json.dumps(tables, indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / MODEL_FILE, save(encoders | extra, metadata=metadata))
        replace_file(folder / CONFIG_FILE, text.encode())
    except OSError as error:
        raise ModelError(f"{folder}: writing failed ({reason(error)}); mend the disk") from error


def random_modal_encoders(
    seed: int, config: ConfigName = "tiny", *, start: Start = "live"
) -> ModalEncoders:
    """Untrained modal encoders in float32 on the CPU, whose weights are a function of the seed.

    Args:
        seed: Any integer.
        config: The architecture, of latents of the same shapes.
        start: ``live`` for moments that all depend on the input, as in tests and benchmarks;
            ``zero`` for the start of training, where log-variances are 0.
    """
    with torch.device("meta"):
        video, audio = VideoEncoder(VIDEO_CONFIGS[config]), AudioEncoder(AUDIO_CONFIGS[config])
    video, audio = video.to_empty(device="cpu"), audio.to_empty(device="cpu")
    draw_weights(video, key=f"{seed}/{_VIDEO}", start=start)
    draw_weights(audio, key=f"{seed}/{_AUDIO}", start=start)
    return ModalEncoders(video, audio)


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent}: no autoencoder; wanted {CONFIG_FILE} and {MODEL_FILE}, found "
            f"{_listing(path.parent)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a readable config: {error}") from error
    if not isinstance(tables, dict):
        raise ModelError(f"{path}: wanted a JSON object, found a {type(tables).__name__}")
    return tables


def _config(cls: type[Config], tables: dict[str, Any], name: str, path: Path) -> Config:
    table = tables.get(name)
    if not isinstance(table, dict):
        raise ModelError(
            f"{path}: wanted a table {name}, found {', '.join(sorted(tables)) or 'nothing'}; save "
            "the autoencoder again, or name the folder of one that has both encoders"
        )
    known = [field.name for field in fields(cls)]
    unknown = [key for key in table if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        raise ModelError(
            f"{path}: {name} has the unknown key {unknown[0]!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"(known: {', '.join(known)})"
        )
    missing = [key for key in known if key not in table and key not in _MAY_BE_MISSING]
    if missing:
        raise ModelError(f"{path}: {name} lacks {', '.join(missing)}; every key must be given")
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
    }
    try:
        for field in fields(cls):
            _check_size(field, values.get(field.name, field.default))
        return cls(**values)
    except ValueError as error:
        raise ModelError(f"{path}: {name}: {error}") from error


def _check_size(field: Field[Any], value: Any) -> None:
    """Refuses what would take long to build; raises `ValueError`."""
    is_list = isinstance(field.default, tuple)
    numbers = value if isinstance(value, tuple) else (value,)
    most = _MAX_BLOCKS if field.name == "num_res_blocks" else _MAX_NUMBER
    is_moderate = len(numbers) <= _MAX_VALUES and all(
        type(number) is int and number <= most for number in numbers
    )
    if not is_moderate or is_list != isinstance(value, tuple):
        wanted = f"a list of at most {_MAX_VALUES} integers" if is_list else "integers"
        raise ValueError(f"{field.name} is {str(value)[:100]!r}; wanted {wanted} up to {most}")


def _read_tensors(path: Path, *, saved_with: str) -> dict[str, Tensor]:
    """The encoders' tensors alone: other parts may be ten times as large."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; wanted the autoencoder's weights")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(_SAVED_WITH, saved_with)
            names = [name for name in file.keys() if name.split(".")[0] in (_VIDEO, _AUDIO)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        found = str(error).partition("\n")[0]
        raise ModelError(f"{path}: the weights cannot be read: {found}") from error
    if found != saved_with:
        raise ModelError(
            f"{path}: these weights were saved with another config than the {CONFIG_FILE} beside "
            f"them (encoders {found[:12]}, wanted {saved_with[:12]}): saving was interrupted, or "
            "the config was edited. Save the autoencoder again, or put its config back"
        )
    return tensors


def _with_weights(encoder: Encoder, tensors: dict[str, Tensor], name: str, path: Path) -> Encoder:
    """The encoder with exactly these weights."""
    prefix = f"{name}."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        encoder.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        raise ModelError(
            f"{path}: the weights of {name} are not those of its config: {found[:500]}. Use the "
            f"{CONFIG_FILE} that they were saved with"
        ) from error
    return encoder


def _named_weights(encoder: VideoEncoder | AudioEncoder, name: str) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor.detach().cpu().float().contiguous()
        for key, tensor in encoder.state_dict().items()
    }


def _encoders_digest(video: VideoEncoder, audio: AudioEncoder) -> str:
    return sha256_hex(
        canonical_json({_VIDEO: architecture_of(video), _AUDIO: architecture_of(audio)})
    )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) or "nothing"
