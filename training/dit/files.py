"""A trained DiT's folder: ``config.json`` and ``model.safetensors``, all that sampling needs."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from latents.config import build_dataclass
from latents.durable import make_folder, reason, replace_file
from latents.errors import ConfigError, ModelError
from latents.recipe import Recipe, recipe_documents, recipes_from_documents, sha256_hex
from latents.whitening import Whitening
from training.diffusion.schedule import NoiseSchedule, linear_schedule
from training.dit.batches import PairWhitening
from training.dit.config import DiTConfig
from training.dit.model import DiT
from training.dit.settings import DiffusionSettings

BUNDLED_DIT = Path(__file__).parent / "tiny"
"""The DiT that belongs to the bundled autoencoder; its name is ``tiny``."""

CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"
MEASURED_FILE = "measured.json"
"""Of the bundled one: its losses on scenes that it was not trained on."""
FORMAT = "mmldm dit"
FORMAT_VERSION = 2
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedCache:
    """A snapshot that a model was trained on."""

    cache: str
    """Where the cache was."""
    commit: int
    weight: float = 1.0
    """How often its windows were seen, beside those of a cache of weight 1."""
    num_silent: int = 0
    """Clips of all its splits that were left out for their silence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedOn:
    """The latents that a model was trained on; it samples such as these, and no others."""

    caches: tuple[TrainedCache, ...]
    """In the order in which their windows were numbered."""
    recipes: Mapping[str, Recipe]
    """Of both fields of the perceptual level, with all they are made from; the same in all."""

    @property
    def recipe_digests(self) -> dict[str, str]:
        """By field."""
        return {field: recipe.digest for field, recipe in self.recipes.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class BegunFrom:
    """A model that another one's training began with."""

    name: str
    """As it was given: ``tiny``, or a folder."""
    steps: int
    """That it had been trained for."""
    weights: str
    """SHA-256 of its file of weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedDiT:
    """A DiT and what its latents mean."""

    model: DiT
    diffusion: DiffusionSettings
    whitening: PairWhitening
    trained_on: TrainedOn
    steps: int
    """Optimiser steps it was trained for."""
    begun_from: BegunFrom | None = None
    """The model whose weights it began with; None where it began afresh."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise that it was trained to predict."""
        return linear_schedule(
            num_timesteps=self.diffusion.num_timesteps,
            first_beta=self.diffusion.first_beta,
            last_beta=self.diffusion.last_beta,
        )


def save_dit(folder: Path, trained: TrainedDiT, *, half: bool = False) -> None:
    """Writes a folder that `load_dit` reads, each file as a whole, the weights last.

    Args:
        folder: Made where it is not there.
        trained: What to save.
        half: Store the weights in float16.

    Raises:
        ModelError: The folder cannot be written.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in trained.model.named_parameters()
    }
    config = _config(trained, dtype=str(dtype).removeprefix("torch."))
    content = json.dumps(config, indent=2).encode() + b"\n"
    try:
        make_folder(folder)
        replace_file(folder / CONFIG_FILE, content)
        replace_file(folder / MODEL_FILE, save(tensors, metadata={"config": sha256_hex(content)}))
    except OSError as error:
        raise ModelError(f"{folder} cannot be written ({reason(error)})") from error


def _config(trained: TrainedDiT, *, dtype: str) -> dict[str, Any]:
    trained_on = trained.trained_on
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "dtype": dtype,
        "steps": trained.steps,
        "begun_from": asdict(trained.begun_from) if trained.begun_from else None,
        "model": asdict(trained.model.config),
        "diffusion": asdict(trained.diffusion),
        "whitening": {
            "video": trained.whitening.video.to_record(),
            "audio": trained.whitening.audio.to_record(),
        },
        "trained_on": {
            "caches": [asdict(cache) for cache in trained_on.caches],
            "recipes": trained_on.recipe_digests,
        },
        "recipes": recipe_documents(trained_on.recipes.values()),
    }


def load_dit(folder: str | Path, *, device: torch.device | str = "cpu") -> TrainedDiT:
    """Reads a folder that `save_dit` wrote; weights are float32.

    Args:
        folder: ``tiny`` for the bundled one, or a folder.
        device: Where it runs.

    Raises:
        ModelError: Nothing is there, it cannot be read, or weights and config do not fit.
    """
    config_path, weights_path = dit_files(folder)
    content = _read(config_path)
    try:
        config = json.loads(content)
        if (config["format"], config["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"it is {config['format']!r}, version {config['version']!r}")
        trained_on = _trained_on(config)
        model_config = build_dataclass(DiTConfig, config["model"], path="model.")
        diffusion = build_dataclass(DiffusionSettings, config["diffusion"], path="diffusion.")
        whitening = PairWhitening(
            video=Whitening.from_record(config["whitening"]["video"]),
            audio=Whitening.from_record(config["whitening"]["audio"]),
        )
        steps = int(config["steps"])
        begun_from = _begun_from(config.get("begun_from"))
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelError(f"{config_path} is no config of a DiT: {error}") from error
    return TrainedDiT(
        model=_model(weights_path, model_config, config_digest=sha256_hex(content)).to(device),
        diffusion=diffusion,
        whitening=whitening,
        trained_on=trained_on,
        steps=steps,
        begun_from=begun_from,
    )


def dit_files(folder: str | Path) -> tuple[Path, Path]:
    """The config and the weights that `load_dit` reads; ``tiny``: those bundled."""
    root = BUNDLED_DIT if str(folder) == "tiny" else Path(folder).expanduser()
    return root / CONFIG_FILE, root / MODEL_FILE


def _begun_from(record: Any) -> BegunFrom | None:
    return build_dataclass(BegunFrom, record, path="begun_from.") if record is not None else None


def _trained_on(config: Mapping[str, Any]) -> TrainedOn:
    found = config["trained_on"]
    return TrainedOn(
        caches=tuple(
            build_dataclass(TrainedCache, cache, path="trained_on.caches.")
            for cache in found["caches"]
        ),
        recipes=recipes_from_documents(found["recipes"], config["recipes"]),
    )


def _model(path: Path, config: DiTConfig, *, config_digest: str) -> DiT:
    content = _read(path)
    try:
        tensors: dict[str, Tensor] = load(content)
        _require_same_save(content, config_digest)
        # Before anything is allocated: a few bytes of config can describe any size.
        with torch.device("meta"):
            _require_same_shapes(tensors, DiT(config))
        model = DiT(config, generator=torch.Generator())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} does not fit its config: {error}") from error
    return model


def _require_same_save(content: bytes, config_digest: str) -> None:
    """A save that was killed between its two files leaves those of two models."""
    (header_bytes,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + header_bytes]).get("__metadata__", {})
    if metadata.get("config") != config_digest:
        raise ValueError(
            f"these weights were saved with another {CONFIG_FILE} than the one beside them; save "
            "the model again (`mmldm train dit --resume` does), or put its config back"
        )


def _require_same_shapes(tensors: Mapping[str, Tensor], model: DiT) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(
        f"{name} {found.get(name, 'is missing')} (wanted {wanted.get(name, 'none')})"
        for name in found.keys() | wanted.keys()
        if found.get(name) != wanted.get(name)
    )
    if differing:
        raise ValueError(f"{len(differing)} weights differ, such as {differing[0]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({reason(error)}); a DiT is a folder that `mmldm train dit` "
            "has written, or tiny (bundled)"
        ) from error
