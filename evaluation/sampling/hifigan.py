"""HiFi-GAN as a vocoder: the model of transformers, from a folder on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.sampling.decode import Vocode
from latents.errors import ModelError
from latents.mel import MelSpec, check_log_mel
from latents.torchaudio_stub import install_torchaudio_stub
from latents.weights import load_tensors

install_torchaudio_stub()

from transformers.models.speecht5.configuration_speecht5 import (  # noqa: E402
    SpeechT5HifiGanConfig as SpeechT5HifiGanConfig,
)
from transformers.models.speecht5.modeling_speecht5 import (  # noqa: E402
    SpeechT5HifiGan as SpeechT5HifiGan,
)

CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"
_INTEGERS = ("model_in_dim", "sampling_rate", "upsample_initial_channel")
_LISTS = ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes")
_MAX_NUMBER = 2**16
_MAX_VALUES = 16
"""Bounds of a config: beyond any HiFi-GAN, and little enough to build in a moment."""


def load_hifigan(folder: Path, mel: MelSpec, *, device: str = "cpu") -> Vocode:
    """A frozen HiFi-GAN that reads this mel.

    Its mel must be a natural logarithm, as that of HiFi-GAN and of AudioLDM's vocoder is. A config
    does not say so; the one that is known to be otherwise, SpeechT5's with its decimal logarithm,
    has another rate and hop than any mel here. Where a mel reads sound as if slowed down
    (``paper44k``), so does the vocoder: its rate is that of the mel's filters.

    Args:
        folder: With config.json and model.safetensors, as transformers' SpeechT5HifiGan saves.
        mel: What it is to read.
        device: Where it runs.

    Raises:
        ModelError: Nothing is there, it cannot be read, or it reads another mel.
    """
    config_path, weights_path = hifigan_files(folder)
    values = _read_config(config_path)
    _require_mel(config_path, values, mel)
    try:
        with torch.device("meta"):
            model = SpeechT5HifiGan(SpeechT5HifiGanConfig(**values))
        tensors = {name: tensor.float() for name, tensor in load_tensors(weights_path).items()}
        model.load_state_dict(tensors, strict=True, assign=True)
    except ModelError:
        raise
    except Exception as error:  # transformers fails in any way at a config that is not its own
        found = " ".join(str(error).split())[:500]
        raise ModelError(
            f"{weights_path}: the weights are not those of its config: {found}. Wanted those of "
            "transformers' SpeechT5HifiGan, with weight norms merged"
        ) from error
    freeze: Callable[[], nn.Module] = model.requires_grad_(False).eval
    freeze().to(device)

    @torch.no_grad()
    def vocode(log_mel: Tensor) -> Tensor:
        check_log_mel(log_mel, mel)
        waveform: Tensor = model(log_mel.T.contiguous().to(device))
        # Kernels of odd overhang, as AudioLDM's, add a few samples behind the last hop.
        return waveform[: log_mel.shape[1] * mel.hop_length].float().cpu()

    return vocode


def hifigan_files(folder: Path) -> tuple[Path, Path]:
    """The config and the weights that `load_hifigan` reads.

    Raises:
        ModelError: The folder lacks one of them.
    """
    root = folder.expanduser()
    config, weights = root / CONFIG_FILE, root / MODEL_FILE
    if not config.is_file() or not weights.is_file():
        found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise ModelError(
            f"{folder}: no vocoder; wanted {CONFIG_FILE} and {MODEL_FILE}, found "
            f"{', '.join(found[:8]) or 'nothing'}. Weights that are pickled are not opened: save "
            "them as safetensors where you trust them"
        )
    return config, weights


def _read_config(path: Path) -> dict[str, Any]:
    """What the architecture depends on, bounded."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: _integers([config[name]])[0] for name in _INTEGERS}
        values |= {name: _integers(config[name]) for name in _LISTS}
        dilations = config["resblock_dilation_sizes"]
        if not 1 <= len(dilations) <= _MAX_VALUES:
            raise ValueError("resblock_dilation_sizes")
        values["resblock_dilation_sizes"] = [_integers(one) for one in dilations]
        values["normalize_before"] = bool(config["normalize_before"])
        values["leaky_relu_slope"] = float(config["leaky_relu_slope"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path}: no config of a HiFi-GAN: {error!r}; wanted that of transformers' "
            "SpeechT5HifiGan"
        ) from error
    return values


def _integers(values: Any) -> list[int]:
    numbers = list(values)
    if not 1 <= len(numbers) <= _MAX_VALUES or any(
        type(number) is not int or not 1 <= number <= _MAX_NUMBER for number in numbers
    ):
        raise ValueError(
            f"{str(numbers)[:100]}; wanted up to {_MAX_VALUES} integers of 1 ... {_MAX_NUMBER}"
        )
    return numbers


def _require_mel(path: Path, config: Mapping[str, Any], mel: MelSpec) -> None:
    found = {
        "mel bins": config["model_in_dim"],
        "Hz": config["sampling_rate"],
        "samples a column": math.prod(config["upsample_rates"]),
    }
    wanted = {
        "mel bins": mel.num_mels,
        "Hz": mel.basis_sample_rate,
        "samples a column": mel.hop_length,
    }
    if found != wanted:
        raise ModelError(
            f"{path}: this vocoder reads mels of {_listed(found)}, but the latents' sound is a mel "
            f"of {_listed(wanted)}; name a vocoder for that with --vocoder, or leave it out for "
            "Griffin-Lim"
        )


def _listed(figures: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {unit}" for unit, number in figures.items())
