"""Tar shards: the contract of stores, and what the stock WebDataset loader sees."""

from __future__ import annotations

import gc
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import webdataset

from latents.cache.local_storage import LocalStorage
from latents.store.tar_store import TarShardWriter
from latents.testing import FakeClip, fake_clips
from tests.latents.store_contract import StoreTests


def write_shard(root: Path, clips: list[FakeClip]) -> Path:
    writer = TarShardWriter(LocalStorage(root))
    for clip in clips:
        writer.add(str(clip.key), clip.tensors)
    writer.seal()
    (shard,) = (root / "shards").glob("*.tar")
    return shard


def load(shard: Path) -> list[dict[str, Any]]:
    """All samples, by the stock loader, which leaves closing the file to the collector."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
        gc.collect()
    return samples


class TestTarStore(StoreTests):
    store = "tar"


def test_the_stock_loader_yields_one_sounding_sample_a_clip(tmp_path: Path) -> None:
    clips = fake_clips(3)
    shard = write_shard(tmp_path, clips)

    samples = load(shard)

    assert [sample["__key__"] for sample in samples] == [str(clip.key) for clip in clips]
    for sample, clip in zip(samples, clips, strict=True):
        for field, tensor in clip.tensors.items():
            loaded = safetensors.numpy.load(sample[f"{field}.safetensors"])
            np.testing.assert_array_equal(loaded["moments"], tensor)


def test_members_have_fixed_names_order_times_and_owner(tmp_path: Path) -> None:
    (clip,) = fake_clips(1)
    with tarfile.open(write_shard(tmp_path, [clip])) as tar:
        members = tar.getmembers()

    assert [member.name for member in members] == [
        f"{clip.key}.kl.audio.safetensors",
        f"{clip.key}.kl.video.safetensors",
    ]
    for member in members:
        assert (member.mtime, member.uname, member.gname, member.mode) == (
            0,
            "mmldm",
            "mmldm",
            0o444,
        )
        assert (member.uid, member.gid) == (0, 0)


def test_metadata_tells_what_a_member_is(tmp_path: Path) -> None:
    (clip,) = fake_clips(1)
    (sample,) = load(write_shard(tmp_path, [clip]))
    (tmp_path / "one.safetensors").write_bytes(sample["kl.video.safetensors"])

    with safetensors.safe_open(tmp_path / "one.safetensors", "np") as member:
        assert member.metadata() == {"mmldm": f'{{"clip":"{clip.key}","field":"kl.video"}}'}
