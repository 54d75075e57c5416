"""Checkpoints: tensors by name and a JSON state in one safetensors file, replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from latents.durable import make_folder, reason, replace_file
from latents.errors import ModelError

_STATE = "state"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """JSON values."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with ``prefix.``, by the rest of their names."""
        start = f"{prefix}."
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by ``prefix.name``; inverse of `Checkpoint.part`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces a checkpoint as a whole; raises `ModelError` where it cannot be written."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    content = save(tensors, metadata={_STATE: json.dumps(checkpoint.state)})
    try:
        make_folder(path.parent)
        replace_file(path, content)
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({reason(error)})") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint on the CPU; raises `ModelError` where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: no usable checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: no usable checkpoint: its state is no table")
    return Checkpoint(tensors=tensors, state=state)


def optimizer_tensors(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimiser's tensors by ``parameter/entry``.

    Args:
        optimizer: With one group.
        names: Of its parameters, in order.
    """
    states: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{entry}": tensor
        for index, entries in states.items()
        for entry, tensor in entries.items()
    }


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; raises `ModelError` on tensors of other parameters."""
    index_of = {name: index for index, name in enumerate(names)}
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in index_of:
            raise ModelError(f"the checkpoint's optimiser knows {name!r}, which the model has not")
        states.setdefault(index_of[name], {})[entry] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
