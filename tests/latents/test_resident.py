"""Windows in memory are the cache's own bytes, by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latents.cache.layout import CacheLayout
from latents.cache.reader import open_cache
from latents.cache.resident import ResidentWindows
from latents.errors import CacheError, DamagedError
from latents.testing import FakeClip, make_cache, perceptual_clips, perceptual_recipes

VIDEO, AUDIO = "perceptual.video", "perceptual.audio"
CLIPS = sorted(perceptual_clips(4), key=lambda clip: str(clip.key))


def cache_of(root: Path, clips: list[FakeClip]) -> CacheLayout:
    return make_cache(root, clips=clips, recipes=perceptual_recipes())


def resident(layout: CacheLayout) -> ResidentWindows:
    level = open_cache(layout.url, level="perceptual")
    return ResidentWindows(level, level.clips[:])


def test_windows_are_the_stored_ones_in_order_of_clip(tmp_path: Path) -> None:
    windows = resident(cache_of(tmp_path, CLIPS))

    assert windows.num_windows == 20
    taken = windows.take(np.array([0, 19, 7, 7]))
    for field in (VIDEO, AUDIO):
        stored = [CLIPS[clip].tensors[field][row] for clip, row in ((0, 0), (3, 4), (1, 2), (1, 2))]
        np.testing.assert_array_equal(taken[field], np.stack(stored))


def test_a_window_has_a_place_in_a_clip(tmp_path: Path) -> None:
    windows = resident(cache_of(tmp_path, CLIPS))
    assert [windows.place(window) for window in (0, 4, 5, 19)] == [
        (str(CLIPS[0].key), 0),
        (str(CLIPS[0].key), 4),
        (str(CLIPS[1].key), 0),
        (str(CLIPS[3].key), 4),
    ]


def test_some_of_the_clips_can_be_taken(tmp_path: Path) -> None:
    level = open_cache(cache_of(tmp_path, CLIPS).url, level="perceptual")
    windows = ResidentWindows(level, [level.clips[2], level.clips[0]])

    taken = windows.take(np.array([0, 5]))[VIDEO]
    np.testing.assert_array_equal(taken, [CLIPS[2].tensors[VIDEO][0], CLIPS[0].tensors[VIDEO][0]])


def test_what_was_taken_is_the_callers_own(tmp_path: Path) -> None:
    windows = resident(cache_of(tmp_path, CLIPS))
    windows.take(np.array([3]))[VIDEO][:] = 0
    assert windows.take(np.array([3]))[VIDEO].any()


def test_given_arrays_are_filled(tmp_path: Path) -> None:
    windows = resident(cache_of(tmp_path, CLIPS))
    chosen = np.array([19, 0, 19])
    out = {name: np.zeros_like(array) for name, array in windows.take(chosen).items()}

    taken = windows.take(chosen, out=out)

    for field in (VIDEO, AUDIO):
        assert taken[field] is out[field]
        np.testing.assert_array_equal(out[field][0], CLIPS[3].tensors[field][4])


@pytest.mark.parametrize("window", [-1, 20])
def test_a_window_that_is_not_there_is_an_error(window: int, tmp_path: Path) -> None:
    windows = resident(cache_of(tmp_path, CLIPS))
    with pytest.raises(IndexError, match="there are 20 windows"):
        windows.take(np.array([0, window]))


def test_progress_is_told_by_clip(tmp_path: Path) -> None:
    level = open_cache(cache_of(tmp_path, CLIPS).url, level="perceptual")
    told: list[tuple[int, int]] = []
    ResidentWindows(level, level.clips[:], on_clip=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_clips_of_other_shapes_are_refused(tmp_path: Path) -> None:
    others = perceptual_clips(1, seed=1, video=(2, 8, 8))
    with pytest.raises(CacheError, match=r"perceptual.video of clip .* is float16 \[4, "):
        resident(cache_of(tmp_path, CLIPS + others))


def test_a_level_without_rows_for_windows_is_refused(tmp_path: Path) -> None:
    level = open_cache(make_cache(tmp_path).url, level="kl")
    with pytest.raises(ValueError, match=r"kl\.video has no row for each window"):
        ResidentWindows(level, level.clips[:])


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    layout = cache_of(tmp_path, CLIPS)
    level = open_cache(layout.url, level="perceptual")
    row = level.clips[0].rows[VIDEO]
    shard = tmp_path / "shards" / row.shard
    content = bytearray(shard.read_bytes())
    content[row.offset + 3] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)

    with pytest.raises(DamagedError, match=row.shard):
        resident(layout)
