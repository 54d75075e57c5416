"""Weights files and their identity. Nothing here ever runs code that a file brings along."""

from __future__ import annotations

import hashlib
import json
import pickle
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
    unpickled. If it holds a ``state_dict``, that is what is returned.

    Raises:
        ModelError: There is no such file, it is damaged, or it holds code or no tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; weights were wanted")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: not a checkpoint of tensors alone ({_first_line(error)}). Files that hold "
            "other objects are not opened, since that would run their code; convert it to "
            "safetensors where you trust it"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the weights cannot be read: {_first_line(error)}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ModelError(f"{path}: it holds a {type(found).__name__}, not named tensors")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path}: it holds no tensors, only {sorted(map(str, found))[:5]}")
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
