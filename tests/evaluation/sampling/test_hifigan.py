"""HiFi-GAN from a folder: the mel it reads, the length it gives, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.sampling.hifigan import SpeechT5HifiGan, SpeechT5HifiGanConfig, load_hifigan
from latents.errors import ModelError
from latents.mel import mel_spec

MEL = mel_spec("hifigan22k")
V1: dict[str, Any] = {
    "model_in_dim": 80,
    "sampling_rate": 22050,
    "upsample_rates": [8, 8, 2, 2],
    "upsample_kernel_sizes": [16, 16, 4, 4],
}
AUDIOLDM: dict[str, Any] = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
}


def make_hifigan(folder: Path, **config: Any) -> Path:
    """As transformers saves it, a few thousand weights drawn at random."""
    values = {
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "initializer_range": 0.2,
        "normalize_before": False,
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SpeechT5HifiGan(SpeechT5HifiGanConfig(**values)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hifigan(tmp_path_factory.mktemp("hifigan") / "v1", **V1)


def log_mel(num_mels: int, columns: int) -> torch.Tensor:
    return torch.randn(num_mels, columns, generator=torch.Generator().manual_seed(0)) - 4


@pytest.mark.parametrize(
    ("mel", "config"), [("hifigan22k", V1), ("paper44k", V1), ("audioldm16k", AUDIOLDM)]
)
def test_a_column_becomes_a_hop_of_sound(mel: str, config: dict[str, Any], tmp_path: Path) -> None:
    spec = mel_spec(mel)
    vocode = load_hifigan(make_hifigan(tmp_path / "vocoder", **config), spec)

    waveform = vocode(log_mel(spec.num_mels, 10))

    assert (waveform.dtype, waveform.shape) == (torch.float32, (10 * spec.hop_length,))
    assert waveform.abs().max() <= 1
    assert waveform.std() > 0


def test_the_waveform_is_that_of_transformers(v1: Path) -> None:
    mel = log_mel(80, 6)

    found = load_hifigan(v1, MEL)(mel)

    with torch.no_grad():
        wanted = SpeechT5HifiGan.from_pretrained(v1)(mel.T)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"sampling_rate": 16000}, "80 mel bins, 16000 Hz, 256 samples a column"),
        ({"model_in_dim": 64}, "64 mel bins, 22050 Hz, 256 samples a column"),
        ({"upsample_rates": [8, 8, 2, 1]}, "80 mel bins, 22050 Hz, 128 samples a column"),
    ],
)
def test_a_vocoder_of_another_mel_is_refused(
    change: dict[str, Any], found: str, tmp_path: Path
) -> None:
    folder = make_hifigan(tmp_path / "vocoder", **{**V1, **change})

    with pytest.raises(ModelError) as refused:
        load_hifigan(folder, MEL)

    assert f"reads mels of {found}," in str(refused.value)
    assert "a mel of 80 mel bins, 22050 Hz, 256 samples a column" in str(refused.value)


def test_pickled_weights_are_not_opened(v1: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((v1 / "config.json").read_bytes())
    torch.save(load_file(v1 / "model.safetensors"), tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"wanted config.json and model.safetensors, found conf"):
        load_hifigan(tmp_path, MEL)


def test_weights_of_another_architecture_are_refused(v1: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((v1 / "config.json").read_bytes())
    tensors = load_file(v1 / "model.safetensors")
    del tensors["conv_pre.bias"]
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(ModelError, match=r"not those of its config: .*conv_pre\.bias"):
        load_hifigan(tmp_path, MEL)


@pytest.mark.parametrize(
    "value", [10**9, [8] * 1000, "80", None, [[8, "x"]], {"a": 1}, True, -3, float("nan")]
)
@pytest.mark.parametrize("name", ["model_in_dim", "upsample_rates", "resblock_dilation_sizes"])
def test_a_hostile_config_is_refused(name: str, value: object, v1: Path, tmp_path: Path) -> None:
    config = json.loads((v1 / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    (tmp_path / "model.safetensors").write_bytes((v1 / "model.safetensors").read_bytes())

    with pytest.raises(ModelError):
        load_hifigan(tmp_path, MEL)
