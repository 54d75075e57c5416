"""Weights and configs that somebody made to do harm: nothing runs, and nothing grows."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from latents.errors import ModelError
from latents.models.modal_encoder_files import (
    load_modal_encoders,
    random_modal_encoders,
    save_modal_encoders,
)
from latents.weights import load_tensors
from tests.latents.weights_mutations import TENSORS, header_and_body, with_header
from tests.limited_child import run_trials
from tests.mutations import hostile_json, hostile_value

TRIALS = "tests.latents.weights_mutations"
ADDRESS_SPACE = 12 * 2**30
"""Of which torch takes the most without using it."""
NUMBERS = (0, -1, 1, 2, 1000, 10**6, 10**9, 2**63, 10**30, True, None, 0.5, 1e300, "a", [], [0])
LISTS = ([10**9], [1] * 500, [[1]], {}, ["DownEncoderBlock2D"] * 3000, ["a"] * 4, "silu")


@pytest.mark.parametrize("form", ["safetensors", "checkpoint"])
def test_hostile_weights_are_refused_or_tensors(form: str) -> None:
    outcomes = run_trials(
        f"{TRIALS}:read_hostile_{form}", seeds=range(1200), memory_bytes=ADDRESS_SPACE
    )

    assert outcomes["refused"] > 800
    assert outcomes["same"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "checkpoint"])
def test_twenty_thousand_hostile_weights_are_refused_or_tensors(form: str) -> None:
    outcomes = run_trials(
        f"{TRIALS}:read_hostile_{form}", seeds=range(10_000, 30_000), memory_bytes=ADDRESS_SPACE
    )

    assert outcomes.total() == 20_000


class Payload:
    """What a hostile pickle does: call something while it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


def payloads(proof: Path) -> dict[str, Payload]:
    """Ways to make a file by unpickling."""
    return {
        "os.system": Payload(os.system, f"touch {proof}"),
        "eval": Payload(eval, f"open({str(proof)!r}, 'w')"),
        "exec": Payload(exec, f"open({str(proof)!r}, 'w')"),
        "open": Payload(open, str(proof), "w"),
        "getattr": Payload(getattr, Path(proof), "touch"),
        "torch.save": Payload(torch.save, 1, str(proof)),
        "torch.load": Payload(torch.load, str(proof)),
    }


def saved(content: object, *, form: str) -> bytes:
    """A checkpoint in one of the forms that torch has had."""
    sink = io.BytesIO()
    if form == "tar":
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for name in ("sys_info", "storages", "tensors", "pickle"):
                part = pickle.dumps(content, protocol=2)
                member = tarfile.TarInfo(name)
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    elif form == "pickle":
        sink.write(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, sink, _use_new_zipfile_serialization=form == "zip")
    return sink.getvalue()


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", "tar", "pickle"])
@pytest.mark.parametrize("way", payloads(Path()))
def test_code_is_not_run_in_whatever_form_it_comes(
    tmp_path: Path, way: str, form: str, suffix: str
) -> None:
    proof, path = tmp_path / "ran", tmp_path / f"model{suffix}"
    content = {"state_dict": {**TENSORS, "x": payloads(proof)[way]}}
    path.write_bytes(saved(content, form=form))

    with pytest.raises(ModelError, match="model"):
        load_tensors(path)
    assert not proof.exists()


def growth_of(load: Callable[[], object]) -> int:
    """By how much the process has come to need more memory than ever, in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


@pytest.mark.filterwarnings("ignore:Sparse invariant")  # torch says so to all who load one
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**5, 10**5),
        torch.zeros(1).as_strided((10**6, 10**6), (0, 0)),
        torch.zeros(10**5, 10**5, device="meta"),
        torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True),
        torch.zeros(3).as_strided((2, 2), (1, 1)),
    ],
    ids=["expanded", "strided", "meta", "sparse", "overlapping"],
)
def test_a_tensor_of_more_values_than_the_file_holds_is_refused(
    tmp_path: Path, tensor: Tensor
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"encoder.weight": tensor}, path)
    assert path.stat().st_size < 10_000

    def load() -> None:
        with pytest.raises(ModelError, match=r"encoder\.weight is no array of values that"):
            load_tensors(path)

    assert growth_of(load) < 64


def test_names_that_double_with_each_level_are_not_written_out(tmp_path: Path) -> None:
    name: tuple[Any, ...] = ()
    for _ in range(18):
        name = (name, name)
    torch.save({name: 1}, tmp_path / "model.ckpt")

    with pytest.raises(ModelError, match="it holds no tensors") as caught:
        load_tensors(tmp_path / "model.ckpt")
    assert len(str(caught.value)) < 1000


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"encoder.weight": torch.zeros(2**25)}, tmp_path / "large.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "large.ckpt") as large,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for part in large.infolist():
            small.writestr(part.filename, large.read(part))
    assert path.stat().st_size < 2**20

    def load() -> None:
        with pytest.raises(ModelError, match="its parts are larger than the file"):
            load_tensors(path)

    assert growth_of(load) < 64


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("shape", [2**20, 2**20]),
        ("shape", [2**32, 2**32]),
        ("shape", [2**63, 2]),
        ("data_offsets", [0, 2**40]),
        ("data_offsets", [0, 0]),
        ("dtype", "F64"),
    ],
)
def test_a_claim_that_the_bytes_do_not_bear_out_is_refused(
    tmp_path: Path, claim: str, value: object
) -> None:
    header, body = header_and_body()
    header["encoder.weight"][claim] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(json.dumps(header).encode(), body))

    def load() -> None:
        with pytest.raises(ModelError, match="the weights cannot be read"):
            load_tensors(path)

    assert growth_of(load) < 64


@pytest.mark.parametrize("name", ["empty", "video_encoder.query_frame"])
def test_a_tensor_of_no_values_may_not_have_an_axis_beyond_measure(
    modal_folder: Path, tmp_path: Path, name: str
) -> None:
    claims = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(json.dumps({name: claims}).encode(), b""))
    (tmp_path / "config.json").write_bytes((modal_folder / "config.json").read_bytes())

    with pytest.raises(ModelError, match="the weights cannot be read"):
        load_tensors(path)
    with pytest.raises(ModelError, match="the weights"):
        load_modal_encoders(tmp_path)


@pytest.fixture(scope="module")
def modal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modal") / "A"
    encoders = random_modal_encoders(0)
    save_modal_encoders(folder, encoders.video, encoders.audio)
    return folder


def hostile_config(config: dict[str, Any], random: Random) -> bytes:
    """A config with another number or list, another shape, or that is hardly JSON."""
    if random.random() < 0.3:
        return hostile_json(config, random)
    if random.random() < 0.3:
        return json.dumps(hostile_value(config, random)).encode()
    changed = json.loads(json.dumps(config))
    tables = [table for table in changed.values() if isinstance(table, dict)] or [changed]
    for _ in range(random.randint(1, 2)):
        table = random.choice(tables)
        table[random.choice(sorted(table))] = random.choice((*NUMBERS, *LISTS))
    return json.dumps(changed).encode()


def refusals(folder: Path, load: Callable[[str], object], seeds: range) -> int:
    """How many hostile configs are refused; the others build what fits the weights."""
    path = folder / "config.json"
    whole = path.read_bytes()
    num_refused = 0
    try:
        for seed in seeds:
            path.write_bytes(hostile_config(json.loads(whole), Random(seed)))
            started = time.monotonic()
            try:
                load(str(folder))
            except ModelError:
                num_refused += 1
            assert time.monotonic() - started < 20, f"seed {seed}"
    finally:
        path.write_bytes(whole)
    return num_refused


def test_hostile_configs_of_modal_encoders_are_refused(modal_folder: Path) -> None:
    assert refusals(modal_folder, load_modal_encoders, range(400)) > 390


def test_hostile_configs_of_a_kl_vae_are_refused(small_kl_vae: Path) -> None:
    from latents.models.kl_vae_files import load_autoencoder

    assert 50 < refusals(small_kl_vae, load_autoencoder, range(100)) < 100


@pytest.mark.slow
def test_any_hostile_config_of_a_kl_vae_is_refused(small_kl_vae: Path) -> None:
    from latents.models.kl_vae_files import load_autoencoder

    assert 1000 < refusals(small_kl_vae, load_autoencoder, range(100, 1600)) < 1500


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers_per_block", 10**9),
        ("down_block_types", ["DownEncoderBlock2D"] * 10**5),
        ("block_out_channels", [2**40] * 4),
        ("norm_num_groups", 0),
        ("latent_channels", 10**30),
        ("scaling_factor", float("nan")),
    ],
)
def test_a_kl_vae_beyond_measure_is_refused_at_once(
    small_kl_vae: Path, tmp_path: Path, key: str, value: object
) -> None:
    from latents.models.kl_vae_files import load_autoencoder

    for file in small_kl_vae.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))

    started = time.monotonic()
    with pytest.raises(ModelError, match="config"):
        load_autoencoder(str(tmp_path))
    assert time.monotonic() - started < 10
