"""Tar shards: the contract of stores, and what the stock WebDataset loader sees."""

from __future__ import annotations

import errno
import gc
import io
import os
import stat
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import webdataset

from latents.cache.local_storage import LocalStorage
from latents.cache.storage import Storage
from latents.errors import CacheError
from latents.store.tar_store import TarShardWriter
from latents.testing import FakeClip, StoreTests, fake_clips

REPOSITORY = Path(__file__).resolve().parents[2]


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
    def open_shard(self, storage: Storage) -> TarShardWriter:
        return TarShardWriter(storage)


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


def test_the_order_in_which_fields_are_given_does_not_matter(tmp_path: Path) -> None:
    (clip,) = fake_clips(1)
    turned = FakeClip(key=clip.key, tensors=dict(sorted(clip.tensors.items(), reverse=True)))

    assert write_shard(tmp_path, [clip]).name == write_shard(tmp_path / "turned", [turned]).name


def test_equal_tensors_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from latents.testing import fake_clips\n"
        "from latents.store.tar_store import TarShardWriter\n"
        "from latents.cache.local_storage import LocalStorage\n"
        "writer = TarShardWriter(LocalStorage(Path(sys.argv[1])))\n"
        "for clip in fake_clips(2): writer.add(str(clip.key), clip.tensors)\n"
        "writer.seal()\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there")], check=True, cwd=REPOSITORY
    )

    here = write_shard(tmp_path, fake_clips(2))
    there = tmp_path / "there" / "shards" / here.name
    assert there.read_bytes() == here.read_bytes()


def test_metadata_tells_what_a_member_is(tmp_path: Path) -> None:
    (clip,) = fake_clips(1)
    (sample,) = load(write_shard(tmp_path, [clip]))
    (tmp_path / "one.safetensors").write_bytes(sample["kl.video.safetensors"])

    with safetensors.safe_open(tmp_path / "one.safetensors", "np") as member:
        assert member.metadata() == {"mmldm": f'{{"clip":"{clip.key}","field":"kl.video"}}'}


def test_data_that_reads_back_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TarShardWriter(LocalStorage(tmp_path))
    writer.add("clip", fake_clips(1)[0].tensors)

    def spoil(descriptor: int) -> None:
        os.pwrite(descriptor, b"\xff" * 2048, 512)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(CacheError, match="reads back differently from what was written"):
        writer.seal()
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TarShardWriter(LocalStorage(tmp_path))
    writer.add("clip", fake_clips(1)[0].tensors)
    named: list[tuple[bool, bool]] = []

    def note(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        named.append((is_folder, bool(list(tmp_path.glob("shards/*.tar")))))

    monkeypatch.setattr(os, "fsync", note)
    writer.seal()

    assert named == [(False, False), (True, True)]


def test_a_place_that_cannot_be_written_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "shards").touch()

    with pytest.raises(CacheError, match=r": writing failed \(File exists\)"):
        TarShardWriter(LocalStorage(tmp_path))


def test_a_shard_that_cannot_be_given_its_name_leaves_nothing(tmp_path: Path) -> None:
    class Refusing(LocalStorage):
        def adopt(self, file: Path, name: str) -> None:
            raise OSError("the bucket does not answer")

    writer = TarShardWriter(Refusing(tmp_path))
    writer.add("clip", fake_clips(1)[0].tensors)

    with pytest.raises(CacheError, match=r"writing failed \(the bucket does not answer\)"):
        writer.seal()
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_that_is_there_already_stays_the_same(tmp_path: Path) -> None:
    first = write_shard(tmp_path, fake_clips(2)).read_bytes()

    again = write_shard(tmp_path, fake_clips(2))

    assert again.read_bytes() == first


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small file system needs root and mount rights: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_cache_error_and_leaves_nothing(small_disk: Path) -> None:
    assert_a_full_disk_leaves_nothing(small_disk)


def test_a_file_that_takes_no_more_is_a_cache_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without root: a file that fails as a full disk does."""

    class FullFile:
        def __init__(self, path: Path) -> None:
            self._file = io.FileIO(path, "xb")

        def write(self, content: bytes) -> int:
            if self._file.tell() + len(content) > 1 << 16:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(content)

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    monkeypatch.setattr(Path, "open", lambda path, mode: FullFile(path))
    assert_a_full_disk_leaves_nothing(tmp_path)


def assert_a_full_disk_leaves_nothing(root: Path) -> None:
    writer = TarShardWriter(LocalStorage(root))
    tensor = np.zeros((8, 8, 32, 32), np.float16)  # 128 KiB
    with pytest.raises(CacheError, match=r"writing failed \(No space left on device\)"):
        writer.add("clip", {"kl.video": tensor})
    writer.discard()

    assert list((root / "shards").iterdir()) == []


def test_a_disk_that_fills_up_at_the_end_is_a_cache_error_and_leaves_nothing(
    small_disk: Path,
) -> None:
    writer = TarShardWriter(LocalStorage(small_disk))
    writer.add("clip", {"kl.video": np.zeros((1, 8, 32, 32), np.float16)})
    (small_disk / "ballast").write_bytes(bytes(1 << 15))
    with (small_disk / "more").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

    with pytest.raises(CacheError, match=r"writing failed \(No space left on device\)"):
        writer.seal()

    assert {path.name for path in small_disk.iterdir()} == {"ballast", "more", "shards"}
    assert list((small_disk / "shards").iterdir()) == []
