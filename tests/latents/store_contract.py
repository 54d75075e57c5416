"""What every shard store must do."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray

from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.reader import read_tensor
from latents.cache.rows import LatentRow
from latents.cache.storage import Storage
from latents.errors import CacheError, DamagedError
from latents.recipe import sha256_hex
from latents.store.kinds import SHARD_SUFFIXES, StoreName, store_of
from latents.store.protocol import ShardWriter, StoredTensor
from latents.store.shard_writers import shard_writer_of
from latents.testing import FakeClip, fake_clips, fake_latent_row, fake_recipes

REPOSITORY = Path(__file__).resolve().parents[2]

Tensors = Mapping[str, NDArray[Any]]


def rows_of(clips: Sequence[FakeClip], stored: Mapping[Any, StoredTensor]) -> list[LatentRow]:
    recipes = fake_recipes()
    return [
        fake_latent_row(clip, field, recipes[field], stored[str(clip.key), field])
        for clip in clips
        for field in clip.tensors
    ]


class FullFile:
    """A file that fails as one on a full disk does, after 64 KiB."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "xb")

    def write(self, content: Any) -> int:
        if self._file.tell() + memoryview(content).nbytes > 1 << 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class StoreTests:
    """Inherited by the tests of each store."""

    store: ClassVar[StoreName]

    def open_shard(self, storage: Storage) -> ShardWriter:
        return shard_writer_of(self.store)(storage)

    def seal(self, root: Path, clips: Mapping[str, Tensors]) -> dict[Any, StoredTensor]:
        writer = self.open_shard(LocalStorage(root))
        for clip, tensors in clips.items():
            writer.add(clip, tensors)
        return writer.seal()

    def seal_fakes(self, root: Path, clips: Sequence[FakeClip]) -> dict[Any, StoredTensor]:
        return self.seal(root, {str(clip.key): clip.tensors for clip in clips})

    def shard_in(self, root: Path) -> Path:
        (shard,) = (root / "shards").iterdir()
        return shard

    # What is stored, and where.

    def test_what_was_given_is_read_back_bit_by_bit(self, tmp_path: Path) -> None:
        clips = fake_clips(20)
        stored = self.seal_fakes(tmp_path, clips)

        layout, tensors = (
            CacheLayout(LocalStorage(tmp_path)),
            {str(c.key): c.tensors for c in clips},
        )
        for row in rows_of(clips, stored):
            tensor = tensors[row.clip][row.field]
            assert read_tensor(layout, row).tobytes() == tensor.tobytes()
            assert read_tensor(layout, row, 2, 4).tobytes() == tensor[2:4].tobytes()

    def test_offsets_point_at_the_bytes_of_every_tensor(self, tmp_path: Path) -> None:
        clips = fake_clips(3)
        stored = self.seal_fakes(tmp_path, clips)

        assert stored.keys() == {(str(clip.key), field) for clip in clips for field in clip.tensors}
        for clip in clips:
            for field, tensor in clip.tensors.items():
                where = stored[str(clip.key), field]
                shard = (tmp_path / "shards" / where.shard).read_bytes()
                assert shard[where.offset :][: tensor.nbytes] == tensor.tobytes()

    @pytest.mark.parametrize(
        ("field", "tensor"),
        [
            ("clip.video", np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2)),
            ("clip.audio", np.array([[0.1, -np.inf, 1e-40]], np.float32)),
            ("kl.video", np.array([[[[0.0, -0.0, np.nan, 6e-8]]]], np.float16)),
            ("kl.audio", np.zeros((2, 8, 4, 4), np.float16)),  # silence is stored too
            ("perceptual.audio", np.zeros((0, 32, 8, 8), np.float16)),
        ],
    )
    def test_every_tensor_is_described_by_its_type_shape_and_checksums(
        self, field: str, tensor: NDArray[Any], tmp_path: Path
    ) -> None:
        where = self.seal(tmp_path, {"clip": {field: tensor}})["clip", field]

        assert (where.dtype, where.shape) == (str(tensor.dtype), tensor.shape)
        assert where.digest == sha256_hex(tensor.tobytes())
        assert where.crc32c == tuple(google_crc32c.value(part.tobytes()) for part in tensor)
        shard = self.shard_in(tmp_path).read_bytes()
        assert shard[where.offset :][: tensor.nbytes] == tensor.tobytes()

    def test_a_tensor_that_is_not_contiguous_is_stored_in_c_order(self, tmp_path: Path) -> None:
        tensor: NDArray[Any] = (
            np.arange(48, dtype=np.float16).reshape(4, 3, 2, 2).transpose(1, 0, 2, 3)
        )
        where = self.seal(tmp_path, {"clip": {"kl.video": tensor}})["clip", "kl.video"]

        shard = self.shard_in(tmp_path).read_bytes()
        assert shard[where.offset :][: tensor.nbytes] == tensor.tobytes(order="C")
        assert where.shape == (3, 4, 2, 2)

    def test_the_fields_of_a_clip_may_come_one_after_the_other(self, tmp_path: Path) -> None:
        clip, other = fake_clips(2)
        writer = self.open_shard(LocalStorage(tmp_path))
        writer.add(str(clip.key), {"kl.video": clip.tensors["kl.video"]})
        writer.add(str(other.key), other.tensors)
        writer.add(str(clip.key), {"kl.audio": clip.tensors["kl.audio"]})
        stored = writer.seal()

        layout = CacheLayout(LocalStorage(tmp_path))
        for row in rows_of([clip], stored):
            assert read_tensor(layout, row).tobytes() == clip.tensors[row.field].tobytes()

    def test_a_field_of_a_clip_is_added_once(self, tmp_path: Path) -> None:
        (clip,) = fake_clips(1)
        writer = self.open_shard(LocalStorage(tmp_path))
        writer.add("clip", clip.tensors)

        with pytest.raises(ValueError, match=r"kl\.audio of clip clip is in this shard already"):
            writer.add("clip", clip.tensors)
        writer.discard()

    def test_num_bytes_counts_the_tensors(self, tmp_path: Path) -> None:
        clip = fake_clips(1)[0]
        writer = self.open_shard(LocalStorage(tmp_path))
        assert writer.num_bytes == 0
        writer.add(str(clip.key), clip.tensors)

        assert writer.num_bytes == sum(tensor.nbytes for tensor in clip.tensors.values())
        writer.discard()

    # The file.

    def test_a_shard_is_named_by_its_content_and_its_store(self, tmp_path: Path) -> None:
        shards = {where.shard for where in self.seal_fakes(tmp_path, fake_clips(2)).values()}

        shard = self.shard_in(tmp_path)
        assert shards == {shard.name}
        assert hashlib.sha256(shard.read_bytes()).hexdigest() == shard.stem
        assert shard.suffix == f".{SHARD_SUFFIXES[self.store]}"
        assert store_of(shard.name) == self.store

    def test_equal_tensors_give_equal_bytes(self, tmp_path: Path) -> None:
        first = self.seal_fakes(tmp_path, fake_clips(2))

        assert first == self.seal_fakes(tmp_path / "again", fake_clips(2))

    def test_equal_tensors_give_equal_bytes_in_every_process(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from latents.testing import fake_clips\n"
            "from latents.store.shard_writers import shard_writer_of\n"
            "from latents.cache.local_storage import LocalStorage\n"
            "writer = shard_writer_of(sys.argv[1])(LocalStorage(Path(sys.argv[2])))\n"
            "for clip in fake_clips(2): writer.add(str(clip.key), clip.tensors)\n"
            "writer.seal()\n"
        )
        there = tmp_path / "there"
        subprocess.run(
            [sys.executable, "-c", script, self.store, str(there)],
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "TZ": "Asia/Tokyo", "ZARR_JSON_INDENT": "4"},
        )

        self.seal_fakes(tmp_path / "here", fake_clips(2))
        here = self.shard_in(tmp_path / "here")
        assert self.shard_in(there).read_bytes() == here.read_bytes()

    def test_the_order_in_which_fields_are_given_does_not_matter(self, tmp_path: Path) -> None:
        (clip,) = fake_clips(1)
        turned = FakeClip(key=clip.key, tensors=dict(sorted(clip.tensors.items(), reverse=True)))

        first = self.seal_fakes(tmp_path, [clip])

        assert first == self.seal_fakes(tmp_path / "turned", [turned])

    def test_other_tensors_give_another_shard(self, tmp_path: Path) -> None:
        first = self.seal_fakes(tmp_path, fake_clips(1, seed=0)).values()
        second = self.seal_fakes(tmp_path, fake_clips(1, seed=1)).values()

        assert {where.shard for where in first}.isdisjoint(where.shard for where in second)

    def test_a_sealed_shard_is_read_only(self, tmp_path: Path) -> None:
        self.seal_fakes(tmp_path, fake_clips(1))

        assert self.shard_in(tmp_path).stat().st_mode & 0o222 == 0

    def test_a_shard_that_is_there_already_stays_the_same(self, tmp_path: Path) -> None:
        self.seal_fakes(tmp_path, fake_clips(2))
        first = self.shard_in(tmp_path).read_bytes()

        self.seal_fakes(tmp_path, fake_clips(2))

        assert self.shard_in(tmp_path).read_bytes() == first

    def test_a_shard_is_synced_before_it_has_its_name_and_the_name_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = self.open_shard(LocalStorage(tmp_path))
        writer.add("clip", fake_clips(1)[0].tensors)
        named: list[tuple[bool, bool]] = []

        def note(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            pattern = f"shards/*.{SHARD_SUFFIXES[self.store]}"
            named.append((is_folder, bool(list(tmp_path.glob(pattern)))))

        monkeypatch.setattr(os, "fsync", note)
        writer.seal()

        assert named == [(False, False), (True, True)]

    # What goes wrong.

    def test_nothing_remains_of_a_discarded_shard(self, tmp_path: Path) -> None:
        writer = self.open_shard(LocalStorage(tmp_path))
        writer.add("clip", fake_clips(1)[0].tensors)
        writer.discard()
        writer.discard()

        assert list((tmp_path / "shards").iterdir()) == []

    def test_a_shard_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        clips = fake_clips(2)
        rows = rows_of(clips, self.seal_fakes(tmp_path, clips))
        last = max(rows, key=lambda row: row.offset)
        shard = self.shard_in(tmp_path)
        shard.chmod(0o644)
        os.truncate(shard, last.offset + 10)

        with pytest.raises(DamagedError, match=rf"{shard.name} at byte {last.offset + 10}: ends "):
            read_tensor(CacheLayout(LocalStorage(tmp_path)), last)

    def test_a_shard_with_other_values_is_refused(self, tmp_path: Path) -> None:
        clips, forged = fake_clips(2), fake_clips(2, seed=1)
        rows = rows_of(clips, self.seal_fakes(tmp_path, clips))
        shard = self.shard_in(tmp_path)
        shard.chmod(0o644)
        content = shard.read_bytes()
        for clip, other in zip(clips, forged, strict=True):
            for field, tensor in clip.tensors.items():
                content = content.replace(tensor.tobytes(), other.tensors[field].tobytes())
        shard.write_bytes(content)

        for row in rows:
            with pytest.raises(DamagedError, match=rf"{shard.name} at byte {row.offset}: .* CRC"):
                read_tensor(CacheLayout(LocalStorage(tmp_path)), row)

    def test_data_that_reads_back_differently_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = self.open_shard(LocalStorage(tmp_path))
        writer.add("clip", fake_clips(1)[0].tensors)

        def spoil(descriptor: int) -> None:
            os.pwrite(descriptor, b"\xff" * 2048, 512)

        monkeypatch.setattr(os, "fsync", spoil)
        with pytest.raises(CacheError, match="reads back differently from what was written"):
            writer.seal()
        assert list((tmp_path / "shards").iterdir()) == []

    def test_a_place_that_cannot_be_written_is_a_cache_error(self, tmp_path: Path) -> None:
        (tmp_path / "shards").touch()

        with pytest.raises(CacheError, match=r": writing failed \(File exists\)"):
            self.open_shard(LocalStorage(tmp_path))

    def test_a_shard_that_cannot_be_given_its_name_leaves_nothing(self, tmp_path: Path) -> None:
        class Refusing(LocalStorage):
            def adopt(self, file: Path, name: str) -> None:
                raise OSError("the bucket does not answer")

        writer = self.open_shard(Refusing(tmp_path))
        writer.add("clip", fake_clips(1)[0].tensors)

        with pytest.raises(CacheError, match=r"writing failed \(the bucket does not answer\)"):
            writer.seal()
        assert list((tmp_path / "shards").iterdir()) == []

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system with room for 64 KiB."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(mount, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if mounted.returncode:
            pytest.skip(
                f"a small file system needs root and mount rights: {mounted.stderr.strip()}"
            )
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    def test_a_full_disk_is_a_cache_error_and_leaves_nothing(self, small_disk: Path) -> None:
        self._require_nothing_left_by_a_full_disk(small_disk)

    def test_a_file_that_takes_no_more_is_a_cache_error_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same without root."""
        monkeypatch.setattr(Path, "open", lambda path, mode, buffering: FullFile(path))
        self._require_nothing_left_by_a_full_disk(tmp_path)

    def _require_nothing_left_by_a_full_disk(self, root: Path) -> None:
        writer = self.open_shard(LocalStorage(root))
        tensor = np.zeros((8, 32, 64, 64), np.float16)  # 2 MiB
        with pytest.raises(CacheError, match=r"writing failed \(No space left on device\)"):
            writer.add("clip", {"kl.video": tensor})
        writer.discard()

        assert list((root / "shards").iterdir()) == []

    def test_a_disk_that_fills_up_at_the_end_is_a_cache_error_and_leaves_nothing(
        self, small_disk: Path
    ) -> None:
        writer = self.open_shard(LocalStorage(small_disk))
        for clip in range(8):  # what is written at the end takes more than is left in a page
            writer.add(f"clip {clip}", {"kl.video": np.zeros((1, 8, 8, 16), np.float16)})
        (small_disk / "ballast").write_bytes(bytes(1 << 15))
        with (small_disk / "more").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

        with pytest.raises(CacheError, match=r"writing failed \(No space left on device\)"):
            writer.seal()

        assert {path.name for path in small_disk.iterdir()} == {"ballast", "more", "shards"}
        assert list((small_disk / "shards").iterdir()) == []
