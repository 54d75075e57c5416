"""Identities are remembered while the files stay the same, and never trusted beyond that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from latents.errors import ModelError
from latents.models import identity_memo, kl_vae_files
from latents.models.identity_memo import kl_vae_identity, memoised_identity, modal_identity
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import WEIGHTS_FILE
from latents.models.modal_encoder_files import (
    MODEL_FILE,
    load_modal_encoders,
    random_modal_encoders,
    save_modal_encoders,
)
from latents.recipe import Canonical, open_sealed_json, sealed_json

HOUR_NS = 3600 * 10**9


class Model:
    """A model of two files that counts how often it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.files = (folder / "config", folder / "weights")
        for path in self.files:
            path.write_bytes(b"one")
        settle(*self.files)
        self.memo = folder / "memo"
        self.num_loads = 0

    def load(self) -> dict[str, Canonical]:
        self.num_loads += 1
        return {"weights": self.files[1].read_bytes().hex()}

    def identity(self, *, scheme: str = "test 1") -> dict[str, Canonical]:
        return memoised_identity(self.files, self.load, scheme=scheme, memo=self.memo)


def settle(*files: Path) -> None:
    """Date files an hour back."""
    for path in files:
        earlier = path.stat().st_mtime_ns - HOUR_NS
        os.utime(path, ns=(earlier, earlier))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_a_model_is_loaded_once(model: Model) -> None:
    first = model.identity()
    assert model.identity() == first == {"weights": b"one".hex()}
    assert model.num_loads == 1


def append(path: Path) -> None:
    path.write_bytes(b"one and more")
    settle(path)


def rewrite_in_place(path: Path) -> None:
    """As many bytes at the same inode, at another time."""
    path.write_bytes(b"two")
    settle(path)


def rewrite_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    before = path.stat()
    aside = path.with_name("aside")
    aside.write_bytes(b"two")
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
    aside.replace(path)


@pytest.mark.parametrize(
    "change", [append, rewrite_in_place, rewrite_and_set_the_time_back, replace]
)
def test_a_changed_file_is_loaded_again(model: Model, change: Callable[[Path], None]) -> None:
    model.identity()
    change(model.files[1])
    assert model.identity() == {"weights": model.files[1].read_bytes().hex()}
    assert model.num_loads == 2


def test_every_file_counts(model: Model) -> None:
    model.identity()
    append(model.files[0])
    model.identity()
    assert model.num_loads == 2


def test_the_same_bytes_elsewhere_are_loaded(model: Model) -> None:
    model.identity()
    elsewhere = model.files[1].with_name("elsewhere")
    model.files[1].rename(elsewhere)
    model.files = (model.files[0], elsewhere)
    model.identity()
    assert model.num_loads == 2


def test_a_link_to_another_file_is_loaded_again(model: Model, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.write_bytes(b"two")
    settle(other)
    link.symlink_to(model.files[1])
    model.files = (model.files[0], link)
    model.identity()
    link.unlink()
    link.symlink_to(other)
    assert model.identity() == {"weights": b"two".hex()}


def test_another_scheme_shares_nothing(model: Model) -> None:
    model.identity()
    model.identity(scheme="test 2")
    assert model.num_loads == 2


@pytest.mark.parametrize("age_seconds", [0.0, 1.0, -3600.0], ids=["now", "just now", "future"])
def test_a_file_modified_just_now_is_not_remembered(model: Model, age_seconds: float) -> None:
    modified_ns = time.time_ns() - int(age_seconds * 1e9)
    os.utime(model.files[1], ns=(modified_ns, modified_ns))
    model.identity()
    assert not model.memo.exists()


def test_a_link_that_leads_elsewhere_while_it_is_read_is_not_remembered(
    model: Model, tmp_path: Path
) -> None:
    one, two, link = model.files[1], tmp_path / "two", tmp_path / "link"
    two.write_bytes(b"two")
    settle(two)
    model.files = (model.files[0], link)

    def load_after_the_link_moved() -> dict[str, Canonical]:
        link.unlink()
        link.symlink_to(two)
        return model.load()

    link.symlink_to(one)
    memoised_identity(model.files, load_after_the_link_moved, scheme="test 1", memo=model.memo)
    link.unlink()
    link.symlink_to(one)
    assert model.identity() == {"weights": b"one".hex()}


def test_a_file_removed_while_it_is_read_is_no_error(model: Model) -> None:
    def load_and_remove() -> dict[str, Canonical]:
        model.files[1].unlink()
        return {"weights": ""}

    found = memoised_identity(model.files, load_and_remove, scheme="test 1", memo=model.memo)
    assert found == {"weights": ""}


def forge(content: bytes) -> bytes:
    """Another identity under the former seal."""
    return content.replace(b"one".hex().encode(), b"two".hex().encode())


def forget_the_files(content: bytes) -> bytes:
    return sealed_json({**open_sealed_json(content), "files": []})


@pytest.mark.parametrize(
    "damage",
    [forge, forget_the_files, lambda content: content[:-1], lambda content: b"", lambda c: b"\xff"],
    ids=["forged", "other files", "cut", "empty", "no text"],
)
def test_a_damaged_memo_is_computed_again_and_mended(
    model: Model, damage: Callable[[bytes], bytes]
) -> None:
    expected = model.identity()
    (record,) = model.memo.iterdir()
    whole = record.read_bytes()
    assert damage(whole) != whole
    record.write_bytes(damage(whole))
    assert model.identity() == expected
    assert model.num_loads == 2
    assert record.read_bytes() == whole


def test_a_memo_that_cannot_be_written_is_no_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model.memo = tmp_path / "file" / "memo"
    assert model.identity() == model.identity() == {"weights": b"one".hex()}
    assert model.num_loads == 2


def test_a_model_trained_again_takes_the_place_of_the_former(model: Model) -> None:
    model.identity()
    append(model.files[1])
    model.identity()
    assert len(list(model.memo.iterdir())) == 1


def test_by_default_identities_are_kept_in_the_home(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    memoised_identity(model.files, model.load, scheme="test 1")
    assert len(list((tmp_path / ".cache" / "mmldm" / "identities").iterdir())) == 1


def test_without_a_home_identities_are_computed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert memoised_identity(model.files, model.load, scheme="test 1") == {"weights": b"one".hex()}


def test_names_need_not_be_utf8(model: Model, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    model.files[1].rename(odd)
    model.files = (model.files[0], odd)
    model.identity()
    model.identity()
    assert model.num_loads == 1


def refuse_to_load(*args: object, **settings: object) -> None:
    raise AssertionError("it was loaded")


def test_a_kl_vae_is_not_loaded_again(
    small_kl_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(*small_kl_vae.iterdir())
    expected = load_kl_vae(str(small_kl_vae)).identity
    assert kl_vae_identity(str(small_kl_vae), memo=tmp_path) == expected
    monkeypatch.setattr(kl_vae_files, "load_tensors", refuse_to_load)
    assert kl_vae_identity(str(small_kl_vae), memo=tmp_path) == expected


def test_other_weights_are_another_kl_vae(tmp_path: Path, small_kl_vae: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    for path in small_kl_vae.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settle(*folder.iterdir())
    before = kl_vae_identity(str(folder), memo=tmp_path / "memo")
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["encoder.conv_in.bias"] += 1
    save_file(tensors, folder / WEIGHTS_FILE)
    assert kl_vae_identity(str(folder), memo=tmp_path / "memo") != before


def test_the_bundled_kl_vae_and_one_of_the_hub_are_remembered(
    small_kl_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl_vae_files, "snapshot_download", lambda *_, **__: str(small_kl_vae))
    settle(*small_kl_vae.iterdir())
    expected = [load_kl_vae(source).identity for source in ("tiny", "organisation/name")]
    for _ in range(2):
        found = [kl_vae_identity(source, memo=tmp_path) for source in ("tiny", "organisation/name")]
        assert found == expected
        monkeypatch.setattr(kl_vae_files, "load_tensors", refuse_to_load)


def test_a_kl_vae_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: there is no such file"):
        kl_vae_identity("nothing", memo=tmp_path)


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    encoders = random_modal_encoders(0)
    save_modal_encoders(tmp_path / "A", encoders.video, encoders.audio)
    settle(*(tmp_path / "A").iterdir())
    return tmp_path / "A"


def test_modal_encoders_are_not_loaded_again(
    autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_modal_encoders(autoencoder).identity
    assert modal_identity(autoencoder, memo=tmp_path / "memo") == expected
    monkeypatch.setattr(identity_memo, "load_modal_encoders", refuse_to_load)
    assert modal_identity(autoencoder, memo=tmp_path / "memo") == expected


def test_one_weight_makes_other_modal_encoders(autoencoder: Path, tmp_path: Path) -> None:
    before = modal_identity(autoencoder, memo=tmp_path / "memo")
    tensors = load_file(autoencoder / MODEL_FILE)
    tensors["video_encoder.query_frame"][0, 0, 0] += 1
    save_file(tensors, autoencoder / MODEL_FILE)
    after = modal_identity(autoencoder, memo=tmp_path / "memo")
    assert after.video != before.video
    assert after.audio == before.audio


def test_a_folder_without_an_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no autoencoder"):
        modal_identity(tmp_path, memo=tmp_path / "memo")
