"""Verification finds every changed byte and says which latents it hit."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import Commit, CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import LatentRow
from latents.cache.verify import Damage, verify_cache
from latents.durable import replace_file
from latents.errors import CacheError
from latents.testing import commit_clips, fake_clips, fake_recipes, make_cache

NUM_FLIPS = 60


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return make_cache(tmp_path / "cache", num_clips=3)


def a_row(layout: CacheLayout, field: str = "kl.video") -> LatentRow:
    return open_cache(layout.root, level="kl").clips[1].rows[field]


def write(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def flip(path: Path, offset: int, mask: int = 0x01) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= mask
    write(path, bytes(content))


def files(layout: CacheLayout) -> list[Path]:
    return sorted(path for path in layout.root.rglob("*") if path.is_file())


def whole_file(damage: Damage) -> bool:
    return (damage.clip, damage.field, damage.offset) == (None, None, 0)


def test_nothing_is_damaged_in_an_intact_cache(layout: CacheLayout) -> None:
    assert verify_cache(layout) == []


def test_nothing_is_damaged_in_a_cache_that_was_moved(layout: CacheLayout, tmp_path: Path) -> None:
    layout.root.rename(tmp_path / "moved")

    assert verify_cache(CacheLayout(tmp_path / "moved")) == []


def test_nothing_is_damaged_in_an_empty_cache(tmp_path: Path) -> None:
    assert verify_cache(create_cache(tmp_path / "empty")) == []


def test_one_random_byte_flipped_anywhere_is_found(layout: CacheLayout) -> None:
    """Each file has its turn, however small."""
    generator = random.Random(0)
    everything = files(layout)
    assert {path.relative_to(layout.root).parts[0] for path in everything} == {
        "cache.json",
        "commits",
        "recipes",
        "refs",
        "rows",
        "shards",
    }
    for number in range(NUM_FLIPS):
        path = everything[number % len(everything)]
        before = path.read_bytes()
        offset, mask = generator.randrange(len(before)), 1 << generator.randrange(8)
        flip(path, offset, mask)

        found = {damage.path for damage in verify_cache(layout)}

        name = str(path.relative_to(layout.root))
        assert name in found, f"byte {offset} of {name} was flipped with {mask:#x}"
        write(path, before)
    assert verify_cache(layout) == []


@pytest.mark.parametrize("name", ["kl.video", "kl.audio"])
def test_a_damaged_tensor_is_named_with_clip_field_and_offset(
    layout: CacheLayout, name: str
) -> None:
    row = a_row(layout, name)
    flip(layout.shards / row.shard, row.offset + 2 * 32 + 9)

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.clip, damage.field) == (f"shards/{row.shard}", row.clip, name)
    assert damage.offset == row.offset + 2 * 32
    assert damage.problem == f"{name} of clip {row.clip}, slice 2, fails its CRC-32C"


def test_every_damaged_slice_is_named(layout: CacheLayout) -> None:
    row = a_row(layout)
    for index in (0, 4, 7):
        flip(layout.shards / row.shard, row.offset + index * 32)

    assert [damage.offset - row.offset for damage in verify_cache(layout)] == [0, 4 * 32, 7 * 32]


def test_damage_between_the_tensors_names_the_shard(layout: CacheLayout) -> None:
    shard = a_row(layout).shard
    with tarfile.open(layout.shards / shard) as tar:
        member = tar.getmembers()[1]
    size = (layout.shards / shard).stat().st_size

    for offset in (member.offset, member.offset + 300, member.offset_data + 8, size - 1):
        flip(layout.shards / shard, offset)
        (damage,) = verify_cache(layout)
        assert whole_file(damage)
        assert damage.path == f"shards/{shard}"
        assert "all its tensors are intact" in damage.problem
        flip(layout.shards / shard, offset)


def test_a_truncated_shard_names_what_is_lost(layout: CacheLayout) -> None:
    row = a_row(layout)
    path = layout.shards / row.shard
    end = row.offset + 5 * 32 + 1
    write(path, path.read_bytes()[:end])

    lost = [d for d in verify_cache(layout) if (d.clip, d.field) == (row.clip, row.field)]

    assert [damage.offset for damage in lost] == [end] * 3
    assert "bytes too early" in lost[0].problem


def test_a_missing_shard_names_every_tensor_in_it(layout: CacheLayout) -> None:
    shard = a_row(layout).shard
    rows = [
        row
        for clip in open_cache(layout.root, level="kl")
        for row in clip.rows.values()
        if row.shard == shard
    ]
    (layout.shards / shard).unlink()

    damaged = verify_cache(layout)

    assert {(d.path, d.clip, d.field, d.offset) for d in damaged} == {
        (f"shards/{shard}", row.clip, row.field, row.offset) for row in rows
    }
    assert len(damaged) == len(rows)
    assert damaged[0].problem == "the shard cannot be read (No such file or directory)"


@pytest.mark.parametrize("folder", ["commits", "recipes", "rows", "refs"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_named(layout: CacheLayout, folder: str, keep: float) -> None:
    for path in sorted((layout.root / folder).iterdir()):
        before = path.read_bytes()
        write(path, before[: int(len(before) * keep)])

        assert any(
            whole_file(damage) and damage.path == f"{folder}/{path.name}"
            for damage in verify_cache(layout)
        )
        write(path, before)


@pytest.mark.parametrize("folder", ["commits", "recipes", "rows"])
def test_a_missing_file_is_noticed(layout: CacheLayout, folder: str) -> None:
    for path in sorted((layout.root / folder).iterdir()):
        before = path.read_bytes()
        path.unlink()

        # The last commit is missed by the ref that names it; every other file by its name.
        is_last = folder == "commits" and path.stem == f"{1:012d}"
        name = "refs/current.json" if is_last else f"{folder}/{path.name}"
        assert name in {damage.path for damage in verify_cache(layout)}
        path.write_bytes(before)


def test_a_fault_is_told_once(layout: CacheLayout) -> None:
    """Though a recipe is named by rows, by a ref and by the recipe below it."""
    recipe = sorted((layout.root / "recipes").iterdir())[0]
    flip(recipe, 5)

    assert [damage.path for damage in verify_cache(layout)] == [f"recipes/{recipe.name}"]


def test_recipes_that_no_ref_names_are_verified_too(layout: CacheLayout) -> None:
    other = fake_recipes(weights="new")
    commit_clips(layout, fake_clips(1), other)
    flip(layout.recipe(other["kl.audio"].digest), 5)

    assert [damage.path for damage in verify_cache(layout)] == [
        f"recipes/{other['kl.audio'].digest}.json"
    ]


def test_a_commit_that_was_exchanged_is_named(layout: CacheLayout) -> None:
    first = CommitLog(layout).read(0)
    forged = Commit(number=0, previous=None, files=first.files, run={"started": "never"})
    replace_file(layout.commit(0), forged.to_json())

    (damage,) = verify_cache(layout)

    assert damage.path == "commits/000000000001.json"
    assert damage.problem == "the commit it follows is not the 0 that is there"


def test_a_gap_in_the_log_is_told_once_however_wide(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", num_clips=4, clips_per_commit=1)
    layout.commit(1).unlink()
    layout.commit(2).unlink()

    assert [damage.path for damage in verify_cache(layout)] == ["commits/000000000001.json"]


def test_a_commit_under_another_number_is_named(layout: CacheLayout) -> None:
    layout.commit(1).rename(layout.commit(999_999_999_999))

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.problem) == ("commits/999999999999.json", "says it is commit 1")


def test_commits_after_a_damaged_one_are_still_verified(layout: CacheLayout) -> None:
    (latents,) = (file for file in CommitLog(layout).read(1).files if file.kind == "latents")
    flip(layout.commit(0), 3)
    flip(layout.rows(latents.sha256), 3)

    paths = {damage.path for damage in verify_cache(layout)}

    assert paths == {"commits/000000000000.json", f"rows/{latents.sha256}.parquet"}


def test_a_ref_beyond_the_log_is_damage(layout: CacheLayout) -> None:
    write_ref(layout, "ahead", Ref(commit=7, recipes={}))

    (damage,) = verify_cache(layout)

    assert damage.path == "refs/ahead.json"
    assert damage.problem == "names commit 7; the log ends at 1"


def test_a_ref_to_a_recipe_that_is_not_there_is_damage(layout: CacheLayout) -> None:
    write_ref(layout, "other", Ref(commit=0, recipes={"kl.video": "f" * 64}))

    assert [damage.path for damage in verify_cache(layout)] == [f"recipes/{'f' * 64}.json"]


def test_a_damaged_format_file_is_named(layout: CacheLayout) -> None:
    flip(layout.format_file, 10)

    (damage,) = verify_cache(layout)

    assert whole_file(damage)
    assert damage.path == "cache.json"


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is not a cache"):
        verify_cache(CacheLayout(tmp_path))


def test_progress_is_told_shard_by_shard(layout: CacheLayout) -> None:
    told: list[tuple[int, int]] = []
    verify_cache(layout, on_shard=lambda done, total: told.append((done, total)))

    assert told == [(1, 2), (2, 2)]
