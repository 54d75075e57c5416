"""An autoencoder's folder gives its encoders back, and nothing else in it is their identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latents.durable import replace_file
from latents.errors import ModelError
from latents.models import modal_encoder_files
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalEncoders
from latents.models.modal_encoder_config import VIDEO_CONFIGS
from latents.models.modal_encoder_files import (
    CONFIG_FILE,
    MODEL_FILE,
    load_modal_encoders,
    random_modal_encoders,
    save_modal_encoders,
)
from latents.models.modal_encoders import VideoEncoder
from latents.recipe import canonical_json


@pytest.fixture
def encoders() -> ModalEncoders:
    return random_modal_encoders(0)


@pytest.fixture
def folder(encoders: ModalEncoders, tmp_path: Path) -> Path:
    save_modal_encoders(tmp_path / "A", encoders.video, encoders.audio)
    return tmp_path / "A"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the weights as another program would, without the metadata."""
    tensors = load_file(folder / MODEL_FILE)
    change(tensors)
    save_file(tensors, folder / MODEL_FILE)


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tables = json.loads((folder / CONFIG_FILE).read_text())
    change(tables)
    (folder / CONFIG_FILE).write_text(json.dumps(tables))


def test_saving_and_loading_changes_nothing(encoders: ModalEncoders, folder: Path) -> None:
    loaded = load_modal_encoders(folder)
    pictures, sound = torch.ones(1, 16, 4, 32, 32), torch.ones(1, 4, 32, 32)
    assert loaded.identity == encoders.identity
    assert torch.equal(loaded.encode_video(pictures), encoders.encode_video(pictures))
    assert torch.equal(loaded.encode_audio(sound), encoders.encode_audio(sound))


def test_saving_again_gives_the_same_bytes(encoders: ModalEncoders, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == [CONFIG_FILE, MODEL_FILE]
    for _ in range(5):  # what is in no fixed order differs by chance
        save_modal_encoders(folder, encoders.video, encoders.audio)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_parts_are_kept_and_have_no_part_in_the_identity(
    encoders: ModalEncoders, tmp_path: Path
) -> None:
    others = {
        "signal_decoder.conv.weight": torch.ones(2),
        "video_projector.weight": torch.ones(2, dtype=torch.float16),
        "discriminator.bias": torch.ones(2),
        "ema.video_encoder.query_frame": torch.ones(2),
    }
    save_modal_encoders(
        tmp_path, encoders.video, encoders.audio, others, extra_tables={"signal_decoder": {"x": 1}}
    )
    stored = load_file(tmp_path / MODEL_FILE)
    assert stored["video_projector.weight"].dtype == torch.float16
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["signal_decoder"] == {"x": 1}
    assert load_modal_encoders(tmp_path).identity == encoders.identity

    def train_the_others(tensors: dict[str, Tensor]) -> None:
        for name in others:
            tensors[name] += 1

    rewrite(tmp_path, train_the_others)
    rewrite_config(tmp_path, lambda tables: tables["signal_decoder"].update(x=2))
    assert load_modal_encoders(tmp_path).identity == encoders.identity


@pytest.mark.parametrize(
    ("tensor", "changed", "kept"),
    [
        ("video_encoder.query_frame", "video", "audio"),
        ("video_encoder.logvar_head.layers.3.bias", "video", "audio"),
        ("audio_encoder.content", "audio", "video"),
        ("audio_encoder.trunk.conv_in.weight", "audio", "video"),
    ],
)
def test_one_weight_changes_its_encoders_identity_alone(
    encoders: ModalEncoders, folder: Path, tensor: str, changed: str, kept: str
) -> None:
    rewrite(folder, lambda tensors: tensors[tensor].reshape(-1)[0].add_(1e-3))
    identity = load_modal_encoders(folder).identity
    before, after = getattr(encoders.identity, changed), getattr(identity, changed)
    assert after.specification()["weights"] != before.specification()["weights"]
    assert getattr(identity, kept) == getattr(encoders.identity, kept)


def test_the_architecture_is_part_of_the_identity(encoders: ModalEncoders, folder: Path) -> None:
    rewrite(folder, lambda tensors: None)
    rewrite_config(folder, lambda tables: tables["video_encoder"].update(key_frames=[0, 1, 2, 3]))
    identity = load_modal_encoders(folder).identity
    assert identity.video.weights_digest == encoders.identity.video.weights_digest
    assert identity.video.specification() != encoders.identity.video.specification()


def test_specifications_are_canonical_and_come_back(encoders: ModalEncoders) -> None:
    specification = encoders.identity.video.specification()
    parsed = json.loads(canonical_json(specification))
    assert parsed["architecture"]["key_frames"] == [0, 5, 10, 15]
    assert ModalEncoderIdentity.from_specification(parsed) == encoders.identity.video


def test_identity_does_not_depend_on_the_precision_it_runs_in(
    encoders: ModalEncoders, folder: Path
) -> None:
    assert load_modal_encoders(folder, precision="bf16").identity == encoders.identity


def test_identity_is_of_the_values_and_not_of_their_dtype(encoders: ModalEncoders) -> None:
    video, audio = random_modal_encoders(0).video.half(), encoders.audio
    in_half = ModalEncoders(video, audio).identity
    assert in_half.video != encoders.identity.video  # rounded
    assert ModalEncoders(video.half().float(), audio).identity == in_half


def test_half_precision_files_load_as_float32(folder: Path) -> None:
    def to_half(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    exact = load_modal_encoders(folder).video.query_frame
    rewrite(folder, to_half)
    assert torch.equal(load_modal_encoders(folder).video.query_frame, exact.half().float())


def test_a_folder_without_an_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"wanted config\.json and model.*found notes\.txt"):
        load_modal_encoders(tmp_path)
    with pytest.raises(ModelError, match="nowhere: no autoencoder"):
        load_modal_encoders(tmp_path / "nowhere")


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: there is no such file"):
        load_modal_encoders(folder)


def test_an_unknown_key_of_an_encoder_names_the_nearest(folder: Path) -> None:
    rewrite_config(folder, lambda tables: tables["video_encoder"].update(key_frame=[0]))
    with pytest.raises(ModelError, match=r"unknown key 'key_frame'; did you mean 'key_frames'"):
        load_modal_encoders(folder)


def test_a_missing_key_of_an_encoder_is_named(folder: Path) -> None:
    rewrite_config(folder, lambda tables: tables["audio_encoder"].pop("head_channels"))
    with pytest.raises(ModelError, match="audio_encoder lacks head_channels"):
        load_modal_encoders(folder)


def test_a_value_of_another_kind_is_named(folder: Path) -> None:
    rewrite_config(folder, lambda tables: tables["video_encoder"].update(channels="4"))
    with pytest.raises(ModelError, match="video_encoder: channels is '4'; wanted integers"):
        load_modal_encoders(folder)


def test_a_missing_encoder_is_named(folder: Path) -> None:
    rewrite_config(folder, lambda tables: tables.pop("audio_encoder"))
    with pytest.raises(ModelError, match="wanted a table audio_encoder, found video_encoder"):
        load_modal_encoders(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udce9", "[" * 100_000])
def test_a_config_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_modal_encoders(folder)


def test_a_missing_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("audio_encoder.content"))
    with pytest.raises(ModelError, match=r"weights of audio_encoder.*content"):
        load_modal_encoders(folder)


def test_a_weight_too_many_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"video_encoder.more": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"weights of video_encoder.*more"):
        load_modal_encoders(folder)


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: None)
    rewrite_config(folder, lambda tables: tables["video_encoder"].update(channels=8))
    with pytest.raises(ModelError, match=r"weights of video_encoder.*size mismatch"):
        load_modal_encoders(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_weights_are_named(folder: Path, content: bytes) -> None:
    (folder / MODEL_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: the weights cannot be read"):
        load_modal_encoders(folder)


def test_a_save_killed_between_its_files_is_not_loaded(
    encoders: ModalEncoders, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = VideoEncoder(replace(VIDEO_CONFIGS["tiny"], key_frames=(0, 1, 2, 3)))

    def killed_at_the_config(path: Path, content: bytes) -> None:
        if path.name == CONFIG_FILE:
            raise KeyboardInterrupt
        replace_file(path, content)

    monkeypatch.setattr(modal_encoder_files, "replace_file", killed_at_the_config)
    with pytest.raises(KeyboardInterrupt):
        save_modal_encoders(folder, other, encoders.audio)
    with pytest.raises(ModelError, match="saving was interrupted"):
        load_modal_encoders(folder)


def test_weights_that_are_not_finite_are_not_saved(encoders: ModalEncoders, tmp_path: Path) -> None:
    encoders.audio.content[0] = torch.nan
    with pytest.raises(ModelError, match=r"1 weights are not finite, first audio_encoder\.content"):
        save_modal_encoders(tmp_path / "A", encoders.video, encoders.audio)
    assert not (tmp_path / "A").exists()


def test_a_folder_that_cannot_be_written_is_named(encoders: ModalEncoders, tmp_path: Path) -> None:
    (tmp_path / "A").touch()
    with pytest.raises(ModelError, match="A: writing failed"):
        save_modal_encoders(tmp_path / "A", encoders.video, encoders.audio)


def test_other_parts_cannot_take_the_encoders_names(
    encoders: ModalEncoders, tmp_path: Path
) -> None:
    weights = {"video_encoder.query_frame": torch.ones(1)}
    with pytest.raises(ValueError, match=r"video_encoder\.query_frame"):
        save_modal_encoders(tmp_path, encoders.video, encoders.audio, weights)
    with pytest.raises(ValueError, match="audio_encoder"):
        save_modal_encoders(
            tmp_path, encoders.video, encoders.audio, extra_tables={"audio_encoder": {}}
        )
