"""Weights have an identity of their own, and reading them never runs their code."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latents.errors import ModelError
from latents.weights import encode_path, load_tensors, tensors_digest


def tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}


def test_digest_ignores_order_and_memory_layout() -> None:
    straight = tensors()
    transposed = {"b": straight["b"], "a": straight["a"].T.contiguous().T}
    assert tensors_digest(transposed) == tensors_digest(straight)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": tensors()["a"]},
        {"a": tensors()["a"], "c": tensors()["b"]},
        {"a": tensors()["a"].reshape(3, 2), "b": tensors()["b"]},
        {"a": tensors()["a"].half(), "b": tensors()["b"]},
        {"a": tensors()["a"] + 1e-6, "b": tensors()["b"]},
        {"a": tensors()["a"], "b": -tensors()["b"]},
    ],
    ids=["missing", "renamed", "reshaped", "dtype", "last bits", "sign"],
)
def test_digest_sees_every_other_change(changed: dict[str, Tensor]) -> None:
    assert tensors_digest(changed) != tensors_digest(tensors())


def test_digest_is_the_same_on_every_machine() -> None:
    assert tensors_digest(tensors()) == (
        "837da83d7c9a88fb8635835822e00af7e8d90bc4a4c1421c3ac114051c22b138"
    )


def test_encode_path_leaves_out_the_decoder() -> None:
    names = ("encoder.conv_in.weight", "quant_conv.bias", "post_quant_conv.bias", "decoder.x")
    kept = encode_path({name: torch.zeros(1) for name in names})
    assert sorted(kept) == ["encoder.conv_in.weight", "quant_conv.bias"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torch_checkpoint_is_read(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors(), "global_step": 7} if wrapped else tensors(), path)
    assert tensors_digest(load_tensors(path)) == tensors_digest(tensors())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    assert tensors_digest(load_tensors(tmp_path / "model.safetensors")) == tensors_digest(tensors())


def test_a_checkpoint_that_names_a_lightning_callback_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    vars(module)["ModelCheckpoint"] = callback
    with monkeypatch.context() as patch:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, package, ModuleType(package))
        patch.setitem(sys.modules, name, module)
        torch.save({"state_dict": tensors(), "callbacks": {callback: 1}}, tmp_path / "sd.ckpt")
    assert tensors_digest(load_tensors(tmp_path / "sd.ckpt")) == tensors_digest(tensors())


class Payload:
    """What a hostile checkpoint does: run something while it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.proof,)  # type: ignore[return-value]


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save({"state_dict": tensors(), "x": Payload(proof)}, path)
    with pytest.raises(ModelError, match="convert it to safetensors"):
        load_tensors(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors", b""),
        ("model.ckpt", b"not a checkpoint"),
        ("model.ckpt", b""),
        ("model.ckpt", pickle.dumps([1, 2], protocol=2)),
    ],
)
def test_a_file_without_weights_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        load_tensors(tmp_path / name)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="holds no tensors"):
        load_tensors(tmp_path / "model.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        load_tensors(tmp_path / "model.pt")
