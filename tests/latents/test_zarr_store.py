"""Zarr shards: the contract of stores, and what stock zarr and xarray see."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from zarr.storage import ZipStore

from latents.cache.local_storage import LocalStorage
from latents.fields import FIELDS
from latents.store.protocol import StoredTensor
from latents.store.zarr_store import DIMENSIONS, ZarrShardWriter
from latents.testing import FakeClip, fake_clips, perceptual_clips
from tests.latents.store_contract import StoreTests

KL = ("kl.audio", "kl.video")


def write_shard(root: Path, clips: Sequence[FakeClip]) -> Path:
    writer = ZarrShardWriter(LocalStorage(root))
    for clip in clips:
        writer.add(str(clip.key), clip.tensors)
    writer.seal()
    (shard,) = (root / "shards").glob("*.zip")
    return shard


class TestZarrStore(StoreTests):
    store = "zarr"


def test_stock_zarr_reads_equal_tensors(tmp_path: Path) -> None:
    clips = fake_clips(3)
    with ZipStore(write_shard(tmp_path, clips), mode="r") as store:
        root = zarr.open_group(store, mode="r")

        assert sorted(root.group_keys()) == sorted(str(clip.key) for clip in clips)
        for clip in clips:
            assert sorted(root[str(clip.key)]) == sorted(clip.tensors)
            for field, tensor in clip.tensors.items():
                np.testing.assert_array_equal(root[f"{clip.key}/{field}"][:], tensor)
                np.testing.assert_array_equal(root[f"{clip.key}/{field}"][3], tensor[3])


@pytest.mark.parametrize("use_consolidated", [True, False])
def test_what_the_root_says_is_what_the_arrays_say(tmp_path: Path, use_consolidated: bool) -> None:
    (clip,) = fake_clips(1)
    with ZipStore(write_shard(tmp_path, [clip]), mode="r") as store:
        root = zarr.open_group(store, mode="r", use_consolidated=use_consolidated)

        array = root[f"{clip.key}/kl.video"]
        assert isinstance(array, zarr.Array)
        assert (array.dtype, array.shape, array.chunks) == (np.float16, (8, 4, 2, 2), (8, 4, 2, 2))
        assert array.metadata.dimension_names == ("frame", "channel", "row", "column")
        assert array.attrs["axes"] == FIELDS["kl.video"].axes
        assert (array.compressors, array.filters) == ((), ())


def test_stock_xarray_reads_a_clip_with_its_axes_named(tmp_path: Path) -> None:
    """Without a warning: the metadata of all is where it looks first."""
    clip = perceptual_clips(2, video=(2, 4, 4), audio=(2, 2, 2))[1]
    with ZipStore(write_shard(tmp_path, perceptual_clips(2)), mode="r") as store:
        fields = xarray.open_zarr(store, group=str(clip.key), chunks=None)

        assert fields.sizes == {
            **{"window": 5, "channel": 4, "row": 4, "column": 4},
            **{"mel_channel": 4, "mel_row": 2, "mel_column": 2},
        }
        for field, tensor in clip.tensors.items():
            found = fields[field].isel(window=slice(1, 3)).to_numpy()
            assert found.dtype == np.float16  # zeros are values, not gaps
            np.testing.assert_array_equal(found, tensor[1:3])


def test_stock_xarray_reads_the_whole_as_a_tree(tmp_path: Path) -> None:
    clips = fake_clips(3)
    with ZipStore(write_shard(tmp_path, clips), mode="r") as store:
        tree = xarray.open_datatree(store, engine="zarr", chunks=None)

        for clip in clips:
            for field, tensor in clip.tensors.items():
                np.testing.assert_array_equal(tree[str(clip.key)][field], tensor)


def test_silence_and_a_field_without_windows_are_read_as_they_are(tmp_path: Path) -> None:
    writer = ZarrShardWriter(LocalStorage(tmp_path))
    writer.add("clip", {"kl.video": np.zeros((2, 8, 4, 4), np.float16)})
    writer.add("clip", {"kl.audio": np.zeros((0, 8, 4, 4), np.float16)})
    stored = writer.seal()
    with ZipStore(tmp_path / "shards" / stored["clip", "kl.video"].shard, mode="r") as store:
        clip = zarr.open_group(store, mode="r")["clip"]

        assert not clip["kl.video"][:].any()
        assert clip["kl.audio"][:].shape == (0, 8, 4, 4)
        assert clip["kl.audio"].chunks == (1, 8, 4, 4)  # Zarr knows none of 0


def test_every_field_has_a_name_for_each_axis() -> None:
    assert DIMENSIONS.keys() == FIELDS.keys()
    for field in FIELDS.values():
        axes = field.axes.partition("(")[2].partition(")")[0].split(", ")
        assert len(DIMENSIONS[field.name]) == len(axes)
        assert field.has_row_per_window == (DIMENSIONS[field.name][0] == "window")


def test_files_of_the_zip_have_fixed_names_order_dates_and_are_not_compressed(
    tmp_path: Path,
) -> None:
    (clip,) = fake_clips(1)
    with zipfile.ZipFile(write_shard(tmp_path, [clip])) as found:
        entries = found.infolist()
        assert found.testzip() is None

    arrays = [f"{clip.key}/{field}" for field in KL]
    members = [name for array in arrays for name in (f"{array}/zarr.json", f"{array}/c/0/0/0/0")]
    assert [entry.filename for entry in entries] == [
        f"{clip.key}/zarr.json",
        *members,
        "zarr.json",
    ]
    for entry in entries:
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert (entry.compress_type, entry.create_system) == (zipfile.ZIP_STORED, 3)
        assert entry.external_attr >> 16 == 0o100444
        assert (entry.extra, entry.comment) == (b"", b"")


def test_the_chunk_is_the_tensor_with_no_codec_but_the_order_of_bytes(tmp_path: Path) -> None:
    (clip,) = fake_clips(1)
    with zipfile.ZipFile(write_shard(tmp_path, [clip])) as found:
        for field, tensor in clip.tensors.items():
            array = json.loads(found.read(f"{clip.key}/{field}/zarr.json"))
            assert array["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}]
            assert found.read(f"{clip.key}/{field}/c/0/0/0/0") == tensor.tobytes()


def test_bytes_are_those_of_every_version_so_far(tmp_path: Path) -> None:
    """Of Zarr's metadata too. Where they change, rewritten shards only get other names."""
    tensor = np.arange(64, dtype=np.float16).reshape(4, 4, 2, 2)
    writer = ZarrShardWriter(LocalStorage(tmp_path))
    writer.add("clip", {"kl.video": tensor, "kl.audio": tensor})

    (shard,) = {where.shard for where in writer.seal().values()}

    assert shard == "ad484524a64bbaa60cc260367613c991365408f52e0c2534ea7ff3e72412249e.zip"


@pytest.mark.parametrize("limit", [100, 1000])
def test_offsets_are_right_in_a_shard_too_large_for_the_plain_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """As beyond 2 GiB in a tensor, and beyond 4 GiB in the file."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    clips = fake_clips(3)
    writer = ZarrShardWriter(LocalStorage(tmp_path))
    for clip in clips:
        writer.add(str(clip.key), clip.tensors)
    stored = writer.seal()

    (shard,) = (tmp_path / "shards").iterdir()
    monkeypatch.undo()
    with ZipStore(shard, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        for clip in clips:
            for field, tensor in clip.tensors.items():
                assert content_of(shard, stored[str(clip.key), field]) == tensor.tobytes()
                np.testing.assert_array_equal(root[f"{clip.key}/{field}"][:], tensor)


def content_of(shard: Path, stored: StoredTensor) -> bytes:
    num_bytes = int(np.prod(stored.shape)) * np.dtype(stored.dtype).itemsize
    return shard.read_bytes()[stored.offset : stored.offset + num_bytes]
