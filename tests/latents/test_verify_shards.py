"""Verification of shards: which tensors are lost, where, and why."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from latents.cache.commit import read_commit, read_rows
from latents.cache.damage import Damage
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.log import CommitLog
from latents.cache.object_storage import open_object_storage
from latents.cache.rows import LatentRow, TombstoneRow, latent_row, rows_to_table
from latents.cache.verify import verify_cache
from latents.recipe import sha256_hex
from latents.store.kinds import STORE_NAMES
from latents.testing import commit_clips, fake_clips, fake_recipes, make_cache

SLICE_BYTES = 4 * 2 * 2 * 2


@pytest.fixture(params=STORE_NAMES)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> CacheLayout:
    """Clips 0 and 1 in the shard of commit 0, clip 2 in that of commit 1."""
    return make_cache(tmp_path / "cache", num_clips=3, store=request.param)


def rows_of(layout: CacheLayout, commit: int = 0) -> list[LatentRow]:
    """Latents rows of a commit, in order of their offsets."""
    file = read_commit(layout, commit).files["latents"]
    rows = map(latent_row, read_rows(layout, "latents", file).to_pylist())
    return sorted(rows, key=lambda row: row.offset)


def shard_of(layout: CacheLayout, commit: int = 0) -> str:
    return layout.shard(rows_of(layout, commit)[0].shard)


def change(layout: CacheLayout, name: str, *offsets: int) -> None:
    path = Path(layout.url, name)
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 0x10
    write(layout, name, content)


def write(layout: CacheLayout, name: str, content: bytes) -> None:
    path = Path(layout.url, name)
    path.chmod(0o644)
    path.write_bytes(content)


def lost(layout: CacheLayout, rows: list[LatentRow], cause: str) -> list[Damage]:
    return [
        Damage(
            path=layout.shard(row.shard),
            clip=row.clip,
            field=row.field,
            offset=row.offset,
            problem=f"{row.field} of clip {row.clip}, is lost: {cause}",
        )
        for row in rows
    ]


@pytest.mark.parametrize("field", ["kl.video", "kl.audio"])
def test_a_damaged_slice_is_named_with_clip_field_and_offset(
    layout: CacheLayout, field: str
) -> None:
    row = next(row for row in rows_of(layout) if row.field == field)
    change(layout, layout.shard(row.shard), row.offset + 2 * SLICE_BYTES + 9)

    assert verify_cache(layout) == [
        Damage(
            path=f"shards/{row.shard}",
            clip=row.clip,
            field=field,
            offset=row.offset + 2 * SLICE_BYTES,
            problem=f"{field} of clip {row.clip}, slice 2, fails its CRC-32C",
        )
    ]


def test_damaged_slices_side_by_side_are_one_fault(layout: CacheLayout) -> None:
    row = next(row for row in rows_of(layout) if row.field == "kl.video")
    damaged = (0, 3, 4, 5, 7)
    change(layout, shard_of(layout), *(row.offset + index * SLICE_BYTES for index in damaged))

    found = [(one.offset - row.offset, one.problem.split(", ")[1]) for one in verify_cache(layout)]

    assert found == [
        (0, "slice 0"),
        (3 * SLICE_BYTES, "slices 3 to 5"),
        (7 * SLICE_BYTES, "slice 7"),
    ]


def test_damage_between_the_tensors_names_the_shard(layout: CacheLayout) -> None:
    """In the headers and metadata between them, and in a zip file's directory at its end."""
    name = shard_of(layout)
    first, second, *_ = rows_of(layout)
    end = first.offset + first.shape[0] * SLICE_BYTES
    between = (end, (end + second.offset) // 2, second.offset - 1)
    places = (0, first.offset - 1, *between, -200, -60, -1)

    for offset in places:
        change(layout, name, offset)
        assert verify_cache(layout) == [
            Damage(
                path=name,
                problem="the shard does not hash to its name, but all its tensors are intact",
            )
        ]
        change(layout, name, offset)


def test_a_truncated_shard_names_what_is_lost(layout: CacheLayout) -> None:
    first, second, *others = rows_of(layout)
    name = shard_of(layout)
    content = Path(layout.url, name).read_bytes()
    write(layout, name, content[: second.offset + 5 * SLICE_BYTES + 1])

    found = [(one.clip, one.field, one.offset, one.problem) for one in verify_cache(layout)]

    def beyond(row: LatentRow, first: int) -> tuple[str, str, int, str]:
        slices = f"slices {first} to {row.shape[0] - 1}"
        what = f"{row.field} of clip {row.clip}, {slices}, lie beyond the shard's end"
        return row.clip, row.field, row.offset + first * SLICE_BYTES, what

    assert first.shape[0] == 5
    assert found == [beyond(second, 5), *(beyond(row, 0) for row in others)]


def test_a_shard_that_grew_is_named(layout: CacheLayout) -> None:
    name = shard_of(layout)
    write(layout, name, Path(layout.url, name).read_bytes() + b"x")

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.clip) == (name, None)


def test_a_missing_shard_names_every_tensor_in_it(layout: CacheLayout) -> None:
    Path(layout.url, shard_of(layout)).unlink()

    assert verify_cache(layout) == lost(layout, rows_of(layout), "the shard is missing")


def test_shards_with_exchanged_contents_are_named_with_what_they_hold(layout: CacheLayout) -> None:
    names = [shard_of(layout, commit) for commit in (0, 1)]
    contents = [Path(layout.url, name).read_bytes() for name in names]
    for name, content in zip(names, reversed(contents), strict=True):
        write(layout, name, content)

    found = {(one.path, one.problem.partition(": ")[2]) for one in verify_cache(layout)}

    assert found == {
        (names[0], f"the file holds the content of {names[1]}"),
        (names[1], f"the file holds the content of {names[0]}"),
    }


def test_exchanged_shards_of_two_stores_are_named_too(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=2, store="tar")
    commit_clips(layout, fake_clips(2, seed=1), fake_recipes(), store="zarr")
    tar, zipped = (shard_of(layout, commit) for commit in (0, 1))
    write(layout, tar, Path(layout.url, zipped).read_bytes())

    assert verify_cache(layout) == lost(
        layout, rows_of(layout), f"the file holds the content of {zipped}"
    )


def test_a_copy_of_another_shard_is_named_with_what_it_holds(layout: CacheLayout) -> None:
    names = [shard_of(layout, commit) for commit in (0, 1)]
    write(layout, names[1], Path(layout.url, names[0]).read_bytes())

    assert verify_cache(layout) == lost(
        layout, rows_of(layout, 1), f"the file holds the content of {names[0]}"
    )


class FaultyFile(io.FileIO):
    """A file on a disk that does not give one of its bytes."""

    def __init__(self, path: Path, bad_byte: int) -> None:
        super().__init__(path)
        self.bad_byte = bad_byte

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        if start <= self.bad_byte < start + (size or 0):
            raise OSError(5, "Input/output error")
        return super().read(size)


class FaultyStorage(LocalStorage):
    """A folder in which one shard has a byte that cannot be read."""

    def __init__(self, root: Path, name: str, bad_byte: int) -> None:
        super().__init__(root)
        self.name, self.bad_byte = name, bad_byte

    def open(self, name: str) -> BinaryIO:
        if name == self.name:
            return FaultyFile(self.root / name, self.bad_byte)
        return super().open(name)


def test_tensors_that_the_disk_does_not_give_are_named(layout: CacheLayout) -> None:
    row = rows_of(layout)[1]
    storage = FaultyStorage(Path(layout.url), layout.shard(row.shard), row.offset + 50)

    (damage,) = verify_cache(CacheLayout(storage))

    assert (damage.clip, damage.field, damage.offset) == (row.clip, row.field, row.offset)
    assert damage.problem.endswith("cannot be read (Input/output error)")


def test_a_fault_of_the_disk_beside_the_tensors_names_the_shard(layout: CacheLayout) -> None:
    name = shard_of(layout)
    storage = FaultyStorage(Path(layout.url), name, 3)

    assert verify_cache(CacheLayout(storage)) == [
        Damage(
            path=name,
            problem="the shard cannot be read (Input/output error), but all its tensors can",
        )
    ]


class ClosedStorage(LocalStorage):
    """A folder whose shards may be listed and not opened."""

    def open(self, name: str) -> BinaryIO:
        raise PermissionError(13, "Permission denied", name)


def test_a_shard_that_cannot_be_opened_names_every_tensor_in_it(layout: CacheLayout) -> None:
    found = verify_cache(CacheLayout(ClosedStorage(Path(layout.url))))

    cause = "the shard cannot be read (Permission denied)"
    wanted = lost(layout, [*rows_of(layout, 0), *rows_of(layout, 1)], cause)
    assert found == sorted(wanted, key=lambda one: (one.path, one.offset))


def append_rows(layout: CacheLayout, *rows: LatentRow) -> None:
    """Commits other rows of what commit 0 holds, as a driver with a fault would."""
    ends = [
        TombstoneRow(reason="changed", uri=None, source=source, clip=None)
        for source in sorted({row.source for row in rows_of(layout)})
    ]
    CommitLog(layout, seen=1).append(
        {
            "latents": rows_to_table("latents", rows),
            "tombstones": rows_to_table("tombstones", ends),
        },
        {},
    )


def test_a_row_that_points_beside_its_tensor_is_named_though_the_shard_is_intact(
    layout: CacheLayout,
) -> None:
    row = replace(rows_of(layout)[0], offset=rows_of(layout)[0].offset + 2)
    append_rows(layout, row)

    (damage,) = verify_cache(layout)

    assert (damage.clip, damage.field, damage.offset) == (row.clip, row.field, row.offset)
    assert damage.problem.endswith(
        "slices 0 to 4, fail their CRC-32C, though the shard is as it was written"
    )


def test_a_row_that_points_at_another_clips_tensor_is_named(layout: CacheLayout) -> None:
    one, other = (row for row in rows_of(layout) if row.field == "kl.video")
    same = replace(one, offset=other.offset, crc32c=other.crc32c, digest=other.digest)
    append_rows(layout, same)

    (damage,) = verify_cache(layout)

    assert damage.offset == other.offset
    assert "begins inside kl.video of clip" in damage.problem


def test_a_row_that_points_into_another_tensor_is_told_once(layout: CacheLayout) -> None:
    first, second, *_ = rows_of(layout)
    append_rows(layout, replace(first, offset=second.offset + 2), second)

    (damage,) = verify_cache(layout)

    assert (damage.clip, damage.field) == (first.clip, first.field)
    assert "fail their CRC-32C" in damage.problem


def test_rows_that_share_their_tensor_as_it_was_made_are_no_damage(layout: CacheLayout) -> None:
    append_rows(layout, *rows_of(layout))

    assert verify_cache(layout) == []


def test_a_row_beyond_the_shard_is_named(layout: CacheLayout) -> None:
    row = replace(rows_of(layout)[0], offset=2**62)
    append_rows(layout, row)

    (damage,) = verify_cache(layout)

    assert (damage.clip, damage.offset) == (row.clip, 2**62)
    assert "slices 0 to 4, lie beyond the shard's end" in damage.problem


def test_a_tensor_that_only_its_digest_betrays_is_named(layout: CacheLayout) -> None:
    """Where a change leaves all checksums as they were: here those of a row for other bytes."""
    rows = rows_of(layout, 1)
    wrong = [replace(row, digest="0" * 64) for row in rows[:1]]
    ends = TombstoneRow(reason="changed", uri=None, source=rows[0].source, clip=None)
    CommitLog(layout, seen=1).append(
        {
            "latents": rows_to_table("latents", [*wrong, *rows[1:]]),
            "tombstones": rows_to_table("tombstones", [ends]),
        },
        {},
    )
    change(layout, shard_of(layout, 1), 0)

    (damage,) = verify_cache(layout)

    assert (damage.clip, damage.field) == (rows[0].clip, rows[0].field)
    assert damage.problem.endswith("does not hash to its digest")


@pytest.fixture
def bucket(layout: CacheLayout, tmp_path: Path) -> CacheLayout:
    """The same cache in a bucket, nothing of it on this machine yet."""
    storage = open_object_storage("memory://", local=tmp_path / "local")
    for file in layout.storage.list(""):
        storage.create(file.name, layout.storage.read(file.name))
    return CacheLayout(storage)


def test_nothing_is_damaged_in_an_intact_bucket(bucket: CacheLayout) -> None:
    assert verify_cache(bucket) == []


def test_a_damaged_slice_in_a_bucket_is_named_too(bucket: CacheLayout) -> None:
    row = rows_of(bucket)[0]
    content = bytearray(bucket.storage.read(shard_of(bucket)))
    content[row.offset + SLICE_BYTES] ^= 1
    bucket.storage.replace(shard_of(bucket), bytes(content))

    (damage,) = verify_cache(bucket)

    assert (damage.clip, damage.field) == (row.clip, row.field)
    assert damage.offset == row.offset + SLICE_BYTES


def test_a_shard_missing_from_a_bucket_is_named_though_a_copy_is_here(
    bucket: CacheLayout, tmp_path: Path
) -> None:
    name = shard_of(bucket)
    content = bucket.storage.read(name)
    verify_cache(bucket)
    bucket.storage.delete(name)
    kept = tmp_path / "local" / "copies" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    assert sha256_hex(content) in name

    assert verify_cache(bucket) == lost(bucket, rows_of(bucket), "the shard is missing")


def test_many_shards_are_verified_in_any_order_of_threads(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, num_clips=6, clips_per_commit=1)
    damaged = [rows_of(layout, commit)[0] for commit in range(0, 6, 2)]
    for row in damaged:
        change(layout, layout.shard(row.shard), row.offset)
    told: list[int] = []

    found = verify_cache(find_cache(tmp_path), on_shard=lambda done, total: told.append(done))

    assert [one.clip for one in found] == [
        row.clip for row in sorted(damaged, key=lambda row: row.shard)
    ]
    assert told == list(range(1, 7))
