"""Weights files and their identity. Nothing here ever runs code that a file brings along."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latents.errors import ModelError

_ENCODE_PREFIXES = ("encoder.", "quant_conv.")


class _LightningCallback:
    """Stands in for the callback whose class checkpoints of PyTorch Lightning name."""


_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_LightningCallback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and values of tensors; their order is immaterial."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head, separators=(",", ":")).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode_path(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an autoencoder that its latents depend on.

    Without the decoder's, so that a fine-tuned decoder does not make cached latents stale.
    """
    return {name: t for name, t in state_dict.items() if name.startswith(_ENCODE_PREFIXES)}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file or of a checkpoint of torch, on the CPU.

    A checkpoint is read without running anything it brings: only tensors and plain values are
    unpickled. If it holds a ``state_dict``, that is what is returned. From a stranger safetensors
    are better all the same: what torch unpickles can still take its time, and memory.

    Raises:
        ModelError: There is no such file, it is damaged, or it holds code or no tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; weights were wanted")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = _load_checkpoint(path)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the weights cannot be read: {_first_line(error)}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ModelError(f"{path}: it holds a {type(found).__name__}, not named tensors")
    named = {name: value for name, value in found.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path}: it holds no tensors, only {sorted(named)[:5]!s:.200}")
    odd = next((name for name, tensor in tensors.items() if not _is_stored(tensor)), None)
    if odd is not None:
        raise ModelError(f"{path}: {odd[:100]} is no array of values that the file holds")
    return tensors


def _load_checkpoint(path: Path) -> object:
    try:
        _check_sizes(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: not a checkpoint of tensors alone ({_first_line(error)}). Files that hold "
            "other objects are not opened, since that would run their code; convert it to "
            "safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged pickle calls torch's functions in any wrong way
        raise ValueError(_first_line(error)) from error


def _check_sizes(path: Path) -> None:
    """Refuses a compressed archive: torch writes none, and a few bytes could become any number."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")


def _is_stored(tensor: Tensor) -> bool:
    """Whether each value has bytes of its own: a view can show one value as any number."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
