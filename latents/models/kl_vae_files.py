"""The files a KL-VAE comes in, and the one it is written to.

Loading is strict: weights that are missing, left over or of another shape are an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from latents.durable import replace_file
from latents.errors import ModelError
from latents.models.identity_encoder import IDENTITY
from latents.torchaudio_stub import install_torchaudio_stub
from latents.weights import load_tensors

install_torchaudio_stub()

from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint  # noqa: E402
from diffusers.models.autoencoders.autoencoder_kl import (  # noqa: E402
    AutoencoderKL as AutoencoderKL,
)
from huggingface_hub import snapshot_download  # noqa: E402
from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: E402

TINY = "tiny"
"""The source that names the bundled model."""
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_WEIGHTS_FILES = (WEIGHTS_FILE, "diffusion_pytorch_model.bin")
_TINY_FOLDER = Path(__file__).parent / "tiny"
_LDM_CONFIG = Path(__file__).parent / "sd_kl_f8" / "config.json"
_LDM_PREFIXES = ("first_stage_model.", "vae.", "")
_LDM_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_FILE_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MAX_NUMBER = 2**16
_MAX_VALUES = 1024
_MAX_BLOCKS = 16
_MAX_LAYERS = 16
"""Bounds of a config: beyond any KL-VAE, and little enough to build in a moment."""
_OLD_ATTENTION_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def load_autoencoder(source: str) -> AutoencoderKL:
    """The autoencoder that a source names, in float32 on the CPU; see `load_kl_vae`."""
    config, weights = autoencoder_files(source)
    if config == _LDM_CONFIG:
        return _from_ldm_checkpoint(weights)
    tensors = _with_new_names(load_tensors(weights))
    return _build(_read_config(config), tensors, str(config.parent))


def autoencoder_files(source: str) -> tuple[Path, Path]:
    """The config and the weights that `load_autoencoder` reads, found without loading them.

    A checkpoint file has the bundled config of kl-f8. A model on the hub is downloaded, or its
    local snapshot taken, as it is for loading.

    Raises:
        ModelError: The source names no KL-VAE.
    """
    if source == TINY:
        return _files_in(_TINY_FOLDER)
    if source == IDENTITY:
        raise ModelError(
            f"{IDENTITY}: it averages pixels, for measuring and testing ingestion, and has no "
            "weights and no decoder; name a KL-VAE, and ingest with that one what is to be decoded "
            "or trained on"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_in(path)
    if path.is_file():
        return _LDM_CONFIG, path
    if _HUB_ID.fullmatch(source) and path.suffix not in _FILE_SUFFIXES:
        return _files_in(_download(source))
    raise ModelError(
        f"{source}: there is no such file or folder. Wanted: {TINY!r}, a folder with config.json, "
        "a checkpoint file, or a model on the hub as organisation/name"
    )


def _files_in(folder: Path) -> tuple[Path, Path]:
    for root in (folder, folder / "vae"):
        if _read_config(root / "config.json").get("_class_name") == "AutoencoderKL":
            break
    else:
        raise ModelError(
            f"{folder}: no KL-VAE; wanted config.json with _class_name AutoencoderKL in it or in "
            f"its folder vae, found {_listing(folder)}"
        )
    for name in _WEIGHTS_FILES:
        if (root / name).exists():
            return root / "config.json", root / name
    raise ModelError(f"{root}: wanted {' or '.join(_WEIGHTS_FILES)}, found {_listing(root)}")


def _from_ldm_checkpoint(path: Path) -> AutoencoderKL:
    tensors = load_tensors(path)
    prefix = next((p for p in _LDM_PREFIXES if f"{p}encoder.conv_in.weight" in tensors), None)
    if prefix is None or f"{prefix}encoder.down.0.block.0.conv1.weight" not in tensors:
        raise ModelError(
            f"{path}: no KL-VAE of latent diffusion; wanted encoder.down.0.block.0.conv1.weight, "
            f"bare or under first_stage_model., found {sorted(tensors)[:3]}. For a file in "
            "diffusers' layout give its folder, where config.json is"
        )
    bare = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    bare = {name: tensor for name, tensor in bare.items() if name.startswith(_LDM_PARTS)}
    config = _read_config(_LDM_CONFIG)
    try:
        convert: Callable[..., dict[str, Tensor]] = convert_ldm_vae_checkpoint
        converted = convert(bare, config)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not the architecture of kl-f8: {error}") from error
    return _build(config, converted, str(path))


def _download(hub_id: str) -> Path:
    wanted = ("config.json", WEIGHTS_FILE)
    try:
        folder = snapshot_download(
            hub_id, allow_patterns=[*wanted, *(f"vae/{name}" for name in wanted)]
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{hub_id}: no such file or folder here, and the hub did not give it: {reason}. "
            "Without a network, download the model elsewhere and give its folder"
        ) from error
    return Path(folder)


def _build(config: dict[str, Any], tensors: dict[str, Tensor], source: str) -> AutoencoderKL:
    """An autoencoder with exactly these weights, in float32."""
    _check_size(config, source)
    try:
        with torch.device("meta"):
            autoencoder: AutoencoderKL = AutoencoderKL.from_config(config)
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        autoencoder.load_state_dict(weights, strict=True, assign=True)
    except Exception as error:  # diffusers fails in any way at a config that is not its own
        found = " ".join(str(error).split())
        raise ModelError(
            f"{source}: the weights are not those of its config: {found[:500]}"
        ) from error
    return autoencoder


def _check_size(config: dict[str, Any], source: str) -> None:
    """Refuses a config that would take long to build, whatever weights come with it."""
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        numbers = [one for one in values if isinstance(one, int | float)]
        most = _MAX_LAYERS if name == "layers_per_block" else _MAX_NUMBER
        is_moderate = all(abs(number) <= most for number in numbers)  # never so of NaN
        most_values = _MAX_BLOCKS if name.endswith("_types") else _MAX_VALUES
        if not is_moderate or len(values) > most_values:
            raise ModelError(f"{source}: the config's {name[:100]} is beyond any KL-VAE")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a readable config: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: wanted a JSON object, found a {type(config).__name__}")
    return config


def _with_new_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention under its present names; files from before diffusers 0.17 have others."""
    renamed = {}
    for name, tensor in tensors.items():
        if ".attentions." in name:
            for old, new in _OLD_ATTENTION_NAMES.items():
                name = name.replace(old, new)
            if name.endswith(".weight") and tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0]
        renamed[name] = tensor
    return renamed


def save_autoencoder(autoencoder: AutoencoderKL, folder: Path, *, half: bool = False) -> None:
    """Write a KL-VAE in diffusers' layout: config.json and diffusion_pytorch_model.safetensors.

    Args:
        autoencoder: What to save.
        folder: Created if it does not exist; what is in it is replaced.
        half: Store the weights in float16.

    Raises:
        ModelError: A weight is beyond float16.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: tensor.detach().cpu().to(dtype).contiguous()
        for name, tensor in autoencoder.state_dict().items()
    }
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(f"{folder}: {len(bad)} weights are not finite as {dtype}, first {bad[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    config = {"_class_name": "AutoencoderKL", **settings_of(autoencoder)}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    replace_file(folder / "config.json", text.encode())


def settings_of(autoencoder: AutoencoderKL) -> dict[str, Any]:
    """The config as JSON values, without diffusers' bookkeeping."""
    public = {k: v for k, v in autoencoder.config.items() if not k.startswith("_")}
    settings: dict[str, Any] = json.loads(json.dumps(public))
    return settings


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) or "nothing"
