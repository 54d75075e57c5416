"""Verification finds every changed byte and says which latents it hit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from latents.cache.commit import Commit, RowFile, read_commit
from latents.cache.damage import Damage
from latents.cache.layout import CacheLayout, create_cache, find_cache
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import (
    LatentRow,
)
from latents.cache.verify import verify_cache
from latents.errors import CacheError
from latents.testing import (
    make_cache,
)
from tests.latents.long_history import (
    DIGESTS,
    a_row,
    flip,
    latents_file,
    latents_of,
    make_history,
    names,
    path,
    paths,
    shorten_checkpoints,
    write,
)

NUM_FLIPS = 300
SLICE_BYTES = 4 * 2 * 2 * 2


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return make_cache(tmp_path / "cache", num_clips=3)


@pytest.fixture(scope="module")
def made_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "history"
    with pytest.MonkeyPatch.context() as patch:
        shorten_checkpoints(patch)
        make_history(folder)
    return folder


@pytest.fixture
def history(made_history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheLayout:
    """A copy of `make_history`."""
    shorten_checkpoints(monkeypatch)
    shutil.copytree(made_history, tmp_path / "history")
    return find_cache(tmp_path / "history")


def exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    write(one, second)
    write(other, first)


def whole_file(damage: Damage) -> bool:
    return (damage.clip, damage.field, damage.offset) == (None, None, 0)


def test_nothing_is_damaged_in_an_intact_cache(layout: CacheLayout) -> None:
    assert verify_cache(layout) == []


def test_nothing_is_damaged_in_a_long_history(history: CacheLayout) -> None:
    assert verify_cache(history) == []


def test_nothing_is_damaged_in_a_cache_that_was_moved(layout: CacheLayout, tmp_path: Path) -> None:
    Path(layout.url).rename(tmp_path / "moved")

    assert verify_cache(find_cache(tmp_path / "moved")) == []


def test_nothing_is_damaged_in_an_empty_cache(tmp_path: Path) -> None:
    assert verify_cache(create_cache(tmp_path / "empty")) == []


def test_every_one_of_300_flipped_bytes_is_found_and_named(history: CacheLayout) -> None:
    """In files that do not hide one another's faults, one byte of each at a time."""
    generator = random.Random(0)
    tensors = [row for commit in (0, 1, 3, 8) for row in latents_of(history, commit)]
    num_flipped = 0
    while num_flipped < NUM_FLIPS:
        for group in independent_files(history):
            before = {name: path(history, name).read_bytes() for name in group}
            offsets = {name: random_offset(generator, history, name, tensors) for name in group}
            for name, offset in offsets.items():
                flip(path(history, name), offset, 1 << generator.randrange(8))

            found = {(one.path, one.clip, one.field, one.offset) for one in verify_cache(history)}

            for name, content in before.items():
                write(path(history, name), content)
            assert found == {where(name, offset, tensors) for name, offset in offsets.items()}
            num_flipped += len(group)
    assert verify_cache(history) == []


def independent_files(layout: CacheLayout) -> Iterator[list[str]]:
    """All files of a cache, apart where damage in one leads past another."""
    commits, checkpoints = names(layout, "commits"), names(layout, "checkpoints")
    of_commits = {
        layout.rows(file.sha256)
        for number in range(len(commits))
        for file in read_commit(layout, number).files.values()
    }
    yield commits
    yield sorted(of_commits)
    yield checkpoints
    yield sorted(set(names(layout)) - {*commits, *of_commits, *checkpoints})


def random_offset(
    generator: random.Random, layout: CacheLayout, name: str, tensors: Sequence[LatentRow]
) -> int:
    """Every other byte of a shard is one of a tensor, though most of a small tar is padding."""
    inside = [row for row in tensors if layout.shard(row.shard) == name]
    if inside and generator.random() < 0.5:
        row = generator.choice(inside)
        return row.offset + generator.randrange(row.shape[0] * SLICE_BYTES)
    return generator.randrange(path(layout, name).stat().st_size)


def where(
    name: str, offset: int, tensors: Sequence[LatentRow]
) -> tuple[str, str | None, str | None, int]:
    """What of a damage is wanted: the file, and for a byte of a tensor its slice."""
    for row in tensors:
        within = offset - row.offset
        if CacheLayout.shard(row.shard) == name and 0 <= within < row.shape[0] * SLICE_BYTES:
            return name, row.clip, row.field, offset - within % SLICE_BYTES
    return name, None, None, 0


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("folder", ["", "commits", "recipes", "rows", "refs", "checkpoints"])
def test_a_truncated_file_is_named(history: CacheLayout, folder: str, keep: float) -> None:
    for name in names(history, folder)[::4] if folder else ["cache.json"]:
        file = path(history, name)
        before = file.read_bytes()
        write(file, before[: int(len(before) * keep)])

        assert [(one.path, whole_file(one)) for one in verify_cache(history)] == [(name, True)]
        write(file, before)


@pytest.mark.parametrize("folder", ["commits", "recipes", "rows"])
def test_a_missing_file_is_named(history: CacheLayout, folder: str) -> None:
    for name in names(history, folder)[::3]:
        file = path(history, name)
        before = file.read_bytes()
        file.unlink()

        assert paths(verify_cache(history)) == [name]
        file.write_bytes(before)


def test_a_missing_last_commit_is_told_by_the_ref_that_names_it(history: CacheLayout) -> None:
    path(history, history.commit(8)).unlink()

    (damage,) = verify_cache(history)

    assert damage.path == "refs/current.json"
    assert damage.problem == "names commit 8; the log ends at 7"


def test_commits_with_exchanged_contents_are_named(history: CacheLayout) -> None:
    exchange(path(history, history.commit(2)), path(history, history.commit(6)))

    damaged = verify_cache(history)

    assert [(one.path, one.problem) for one in damaged] == [
        ("commits/000000000002.json", "says it is commit 6"),
        ("commits/000000000006.json", "says it is commit 2"),
    ]


@pytest.mark.parametrize("folder", ["recipes", "rows", "checkpoints"])
def test_files_with_exchanged_contents_are_named(history: CacheLayout, folder: str) -> None:
    first, second = names(history, folder)[:2]
    exchange(path(history, first), path(history, second))

    assert paths(verify_cache(history)) == [first, second]


@pytest.mark.parametrize("folder", ["commits", "recipes", "rows", "checkpoints"])
def test_a_file_that_holds_a_copy_of_another_is_named(history: CacheLayout, folder: str) -> None:
    first, second = names(history, folder)[:2]
    write(path(history, second), path(history, first).read_bytes())

    assert paths(verify_cache(history)) == [second]


@pytest.mark.parametrize("number", [2, 999_999_999_999])
def test_a_copy_of_a_commit_under_another_number_is_named(layout: CacheLayout, number: int) -> None:
    copy = path(layout, layout.commit(number))
    copy.write_bytes(path(layout, layout.commit(1)).read_bytes())

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.problem) == (layout.commit(number), "says it is commit 1")


def test_a_gap_in_the_log_is_told_once_however_wide(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", num_clips=4, clips_per_commit=1)
    path(layout, layout.commit(1)).unlink()
    path(layout, layout.commit(2)).unlink()

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.problem) == (
        "commits/000000000001.json",
        "the commit is missing from the log",
    )


def test_a_gap_is_told_beside_the_damaged_commit_after_it(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", num_clips=4, clips_per_commit=1)
    path(layout, layout.commit(1)).unlink()
    flip(path(layout, layout.commit(2)), 5)

    assert paths(verify_cache(layout)) == [layout.commit(1), layout.commit(2)]


def test_a_commit_that_was_exchanged_is_named_by_the_one_after_it(layout: CacheLayout) -> None:
    first = read_commit(layout, 0)
    forged = Commit(number=0, previous=None, files=first.files, run={"started": "never"})
    write(path(layout, layout.commit(0)), forged.to_json())

    (damage,) = verify_cache(layout)

    assert damage.path == "commits/000000000001.json"
    assert damage.problem == "the commit it follows is not the 0 that is there"


def test_a_first_commit_that_follows_another_is_named(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    beheaded = Commit(number=0, previous="0" * 64, files={}, run={})
    layout.storage.create(layout.commit(0), beheaded.to_json())

    assert paths(verify_cache(layout)) == [layout.commit(0)]


def test_the_log_does_not_end_at_a_commit_under_a_wrong_number(layout: CacheLayout) -> None:
    write_ref(layout, "ahead", Ref(commit=7, recipes={}))
    copy = path(layout, layout.commit(999_999_999_999))
    copy.write_bytes(path(layout, layout.commit(1)).read_bytes())

    found = {damage.path: damage.problem for damage in verify_cache(layout)}

    assert found["refs/ahead.json"] == "names commit 7; the log ends at 1"


def test_rows_of_another_number_than_the_commit_says_are_named(layout: CacheLayout) -> None:
    first = read_commit(layout, 0)
    files = {**first.files, "latents": RowFile(sha256=first.files["latents"].sha256, num_rows=9)}
    forged = Commit(number=2, previous=read_commit(layout, 1).digest, files=files, run={})
    path(layout, layout.commit(2)).write_bytes(forged.to_json())

    (damage,) = verify_cache(layout)

    assert (damage.path, damage.problem) == (latents_file(layout, 0), "holds 4 rows, not 9")


def test_commits_after_a_damaged_one_are_still_verified(layout: CacheLayout) -> None:
    rows = latents_file(layout, 1)
    flip(path(layout, layout.commit(0)), 3)
    flip(path(layout, rows), 3)

    assert paths(verify_cache(layout)) == ["commits/000000000000.json", rows]


def test_a_fault_is_told_once(layout: CacheLayout) -> None:
    """Though a recipe is named by rows, by refs and by the recipe below it."""
    write_ref(layout, "other", Ref(commit=1, recipes=DIGESTS))
    for name in names(layout, "recipes"):
        flip(path(layout, name), 5)

    assert paths(verify_cache(layout)) == names(layout, "recipes")


@pytest.mark.parametrize(
    "name",
    [
        f"shards/{'e' * 64}.tar",
        f"rows/{'e' * 64}.parquet",
        "recipes/notes.txt",
        "refs/-.json",
        "checkpoints/notes.json",
        *(f"{folder}/.partial-1" for folder in ("commits", "recipes", "refs", "rows", "shards")),
    ],
)
def test_files_that_nothing_names_are_no_damage(history: CacheLayout, name: str) -> None:
    path(history, name).write_bytes(b"half")

    assert verify_cache(history) == []


def test_a_damaged_format_file_is_named(layout: CacheLayout) -> None:
    flip(path(layout, "cache.json"), 10)

    (damage,) = verify_cache(layout)

    assert whole_file(damage)
    assert damage.path == "cache.json"


def test_a_missing_format_file_is_named_where_there_is_a_log(layout: CacheLayout) -> None:
    path(layout, "cache.json").unlink()

    (damage,) = verify_cache(layout)

    assert damage.path == "cache.json"
    assert damage.problem == "the format file is missing, though commits are not"


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    path(layout, "cache.json").unlink()

    with pytest.raises(CacheError, match="is not a cache"):
        verify_cache(layout)


def test_faults_come_in_order_of_file_and_place(layout: CacheLayout) -> None:
    video, audio = a_row(layout), a_row(layout, "kl.audio")
    shard = path(layout, layout.shard(video.shard))
    flip(shard, video.offset + 96)
    flip(shard, video.offset)
    flip(shard, audio.offset)
    flip(path(layout, "refs/current.json"), 3)

    found = [(damage.path, damage.offset) for damage in verify_cache(layout)]

    name = layout.shard(video.shard)
    wanted = sorted([audio.offset, video.offset, video.offset + 96])
    assert found == [("refs/current.json", 0), *((name, offset) for offset in wanted)]


def test_progress_is_told_shard_by_shard(layout: CacheLayout) -> None:
    told: list[tuple[int, int]] = []
    verify_cache(layout, on_shard=lambda done, total: told.append((done, total)))

    assert told == [(1, 2), (2, 2)]
