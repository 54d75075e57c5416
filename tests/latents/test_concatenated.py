"""Windows of several readers, read as those of one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from latents.cache.concatenated import ConcatenatedWindows
from latents.cache.pack import open_pack
from latents.cache.pack_writer import write_pack
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.resident import ResidentWindows
from latents.cache.streaming import StreamingWindows
from latents.cache.windows import Windows
from latents.errors import CacheError, DamagedError
from latents.testing import make_cache, perceptual_clips, perceptual_recipes
from tests.latents.window_caches import AUDIO, VIDEO, FakeWindows

NAMES = ("A", "B", "C")


def level_of(root: Path, *, num_clips: int, seed: int, video: int = 4) -> CachedLevel:
    clips = perceptual_clips(num_clips, seed=seed, video=(2, video, video))
    layout = make_cache(root, clips=clips, recipes=perceptual_recipes())
    return open_cache(layout.url, level="perceptual")


def of_three(folder: Path) -> tuple[list[Windows], ConcatenatedWindows]:
    """In memory, from shards and in a pack: 15, 5 and 10 windows."""
    levels = [level_of(folder / str(n), num_clips=n, seed=n) for n in (3, 1, 2)]
    pack = write_pack(levels[2], folder / "c.safetensors", ref="current").path
    parts: list[Windows] = [
        ResidentWindows(levels[0], levels[0].clips),
        StreamingWindows(levels[1], levels[1].clips),
        open_pack(pack),
    ]
    return parts, ConcatenatedWindows(parts, names=NAMES)


def test_windows_are_numbered_reader_after_reader(tmp_path: Path) -> None:
    parts, windows = of_three(tmp_path)
    stored = [part.take(np.arange(part.num_windows)) for part in parts]
    asked = np.array([29, 0, 14, 15, 19, 20, 3, 3, 16])

    taken = windows.take(asked)

    assert windows.num_windows == 30
    for field in (VIDEO, AUDIO):
        wanted = np.concatenate([one[field] for one in stored])[asked]
        assert taken[field].dtype == wanted.dtype
        np.testing.assert_array_equal(taken[field], wanted)


@pytest.mark.parametrize("asked", [[2, 17, 29, 2], [16, 15], []])
def test_arrays_that_are_given_are_filled(asked: list[int], tmp_path: Path) -> None:
    _, windows = of_three(tmp_path)
    out = {
        name: np.full((len(asked), *shape), 9, of) for name, (shape, of) in windows.shapes.items()
    }

    taken = windows.take(np.array(asked, np.int64), out=out)

    wanted = windows.take(np.array(asked, np.int64))
    for field in (VIDEO, AUDIO):
        assert taken[field] is out[field]
        np.testing.assert_array_equal(out[field], wanted[field])


def test_places_are_those_of_each_reader(tmp_path: Path) -> None:
    parts, windows = of_three(tmp_path)
    wanted = [part.place(window) for part in parts for window in range(part.num_windows)]
    assert [windows.place(window) for window in range(30)] == wanted
    assert [windows.index.place(window) for window in range(30)] == wanted


def test_clips_may_have_different_numbers_of_windows() -> None:
    windows = ConcatenatedWindows([FakeWindows(4), FakeWindows(6)], names=("A", "B"))
    assert [windows.place(window)[1] for window in range(10)] == [*range(4), *range(6)]


def test_a_copy_for_another_process_gives_the_same_windows(tmp_path: Path) -> None:
    _, windows = of_three(tmp_path)
    copy = pickle.loads(pickle.dumps(windows))
    for field, array in windows.take(np.arange(30)).items():
        np.testing.assert_array_equal(copy.take(np.arange(30))[field], array)


@pytest.mark.parametrize("asked", [[30], [-1], [0, 31]])
def test_windows_that_are_not_there_are_refused(asked: list[int], tmp_path: Path) -> None:
    _, windows = of_three(tmp_path)
    with pytest.raises(IndexError, match="there are 30 windows"):
        windows.take(np.array(asked))


def test_damage_is_told_by_the_reader_that_has_it() -> None:
    damage = DamagedError("shards/a.tar", 5, "its checksum differs")
    parts = [FakeWindows(4), FakeWindows(4, damaged={1: damage})]
    windows = ConcatenatedWindows(parts, names=("A", "B"))

    assert windows.take(np.array([1, 4]))[VIDEO].tolist() == [[1], [0]]
    with pytest.raises(DamagedError, match=r"^B: shards/a\.tar at byte 5"):
        windows.take(np.array([1, 5]))


def test_windows_of_other_shapes_are_refused(tmp_path: Path) -> None:
    levels = [level_of(tmp_path / f"{n}", num_clips=1, seed=0, video=n) for n in (4, 8)]
    parts = [ResidentWindows(level, level.clips) for level in levels]
    with pytest.raises(CacheError, match=r"of mine are .*\(4, 8, 8\), but those of yours are"):
        ConcatenatedWindows(parts, names=("yours", "mine"))


def test_readers_and_names_must_be_there() -> None:
    with pytest.raises(ValueError, match="0 readers and 0 names"):
        ConcatenatedWindows([], names=[])
    with pytest.raises(ValueError, match="1 readers and 2 names"):
        ConcatenatedWindows([FakeWindows(1)], names=["A", "B"])
