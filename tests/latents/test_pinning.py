"""A ref is only pointed at what is there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from latents.cache import drivers
from latents.cache.drivers import collecting
from latents.cache.gc import collect_garbage, plan_gc
from latents.cache.layout import CacheLayout
from latents.cache.pinning import pin
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, read_ref
from latents.cache.removal import drop
from latents.errors import CacheError, ConfigError
from latents.testing import fake_clips, fake_recipes, make_cache

RECIPES = {field: recipe.digest for field, recipe in fake_recipes().items()}
NOW = Ref(commit=2, recipes=RECIPES)


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return make_cache(tmp_path / "cache", num_clips=3, clips_per_commit=1)


def test_a_ref_is_copied(layout: CacheLayout) -> None:
    assert pin(layout, "mine") == NOW
    assert read_ref(layout, "mine") == NOW


def test_a_ref_goes_back_to_an_earlier_commit_and_forth(layout: CacheLayout) -> None:
    pin(layout, "latest")

    assert pin(layout, "current", commit=0) == Ref(commit=0, recipes=RECIPES)
    assert len(open_cache(layout.url, level="kl")) == 1
    assert pin(layout, "current", to="latest") == NOW


@pytest.mark.parametrize("commit", [-1, 3])
def test_there_is_no_ref_to_a_commit_that_is_not_there(layout: CacheLayout, commit: int) -> None:
    with pytest.raises(CacheError, match=f"has no commit {commit}; the latest is 2"):
        pin(layout, "mine", commit=commit)


def test_there_is_no_ref_to_what_was_not_made_yet(layout: CacheLayout, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "cache", num_clips=1, recipes=fake_recipes(weights="new"))

    with pytest.raises(CacheError, match=r"nothing was made by the recipes of kl\.audio, kl\.vid"):
        pin(other, "mine", commit=1)


def test_there_is_no_ref_to_what_a_gc_has_removed(layout: CacheLayout) -> None:
    drop(layout, [str(fake_clips(3)[1].key)], run={})
    collect_garbage(layout, plan_gc(layout, grace_seconds=0), run={})

    with pytest.raises(CacheError, match="of the 3 shards of commit 2, 1 are gone"):
        pin(layout, "mine", commit=2)
    assert pin(layout, "mine", commit=0).commit == 0


def test_there_is_no_ref_of_another_that_is_not_there_nor_of_a_wrong_name(
    layout: CacheLayout,
) -> None:
    with pytest.raises(CacheError, match="has no ref 'nothing'"):
        pin(layout, "mine", to="nothing")
    with pytest.raises(ConfigError, match="is no name for a ref"):
        pin(layout, "../mine")


def test_a_ref_is_not_set_while_a_gc_runs(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not know of it."""
    monkeypatch.setattr(drivers, "POLL_SECONDS", 0.01)
    thread = threading.Thread(target=pin, args=(layout, "mine"))
    with collecting(layout):
        thread.start()
        thread.join(0.1)
        assert read_ref(layout, "mine") is None
    thread.join()

    assert read_ref(layout, "mine") == NOW
