"""The store of shards: how tensors are laid into files, and nothing of what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import ConfigError
from latents.store.kinds import StoreName, store_of
from pipeline.settings import RunSettings
from tests.pipeline.small_jobs import NUM_SCENES, SCENES, SmallCache, SmallJob

pytestmark = pytest.mark.usefixtures("decode_in_process")

ZARR = ("run.store=zarr",)


def stores_of(layout: CacheLayout, recipes: Mapping[str, str]) -> dict[str, set[StoreName]]:
    """By field the stores in whose shards its latents lie."""
    snapshot = load_snapshot(layout)
    return {
        field: set(map(store_of, snapshot.rows_of(recipe)["shard"].to_pylist()))
        for field, recipe in recipes.items()
    }


def test_the_store_changes_neither_recipes_nor_contents(
    cache: SmallCache, job: SmallJob, tmp_path: Path
) -> None:
    other = SmallCache(tmp_path / "other")
    other.ingest(replace(job, overrides=ZARR), SCENES)

    recipes = cache.ref("current").recipes
    assert other.ref("current").recipes == recipes
    tar, zarr = inspect_cache(cache.layout), inspect_cache(other.layout)
    assert len(tar.levels) == 3
    assert zarr.levels == tar.levels
    assert {field: asdict(one)["mean"] for field, one in zarr.fields.items()} == {
        field: asdict(one)["mean"] for field, one in tar.fields.items()
    }
    assert set().union(*stores_of(cache.layout, recipes).values()) == {"tar"}
    assert set().union(*stores_of(other.layout, recipes).values()) == {"zarr"}
    assert verify_cache(other.layout) == []


def test_nothing_is_made_again_in_another_store(cache: SmallCache, job: SmallJob) -> None:
    done = cache.ingest(replace(job, overrides=ZARR), SCENES)

    assert done.made == {}
    assert done.result.num_already_present == NUM_SCENES


def test_latents_in_one_store_are_made_from_those_in_another(
    cache: SmallCache, update: SmallJob, tmp_path: Path
) -> None:
    """And are those that come of one alone."""
    same = SmallCache(tmp_path / "same")
    same.ingest(replace(update, overrides=ZARR), SCENES)

    done = cache.refresh(replace(update, overrides=ZARR))

    assert (done.result.num_videos_opened, done.result.num_kl_images) == (0, 0)
    recipes = done.planned.wanted.digests
    assert stores_of(cache.layout, recipes) == {
        "kl.video": {"tar"},
        "kl.audio": {"tar"},
        "perceptual.video": {"zarr"},
        "perceptual.audio": {"zarr"},
    }
    levels = [inspect_cache(find_cache(one.layout.url)).levels for one in (cache, same)]
    assert levels[0]["perceptual"] == levels[1]["perceptual"]
    assert verify_cache(cache.layout) == []


def test_shards_are_tar_unless_another_store_is_named(job: SmallJob) -> None:
    assert RunSettings().store == "tar"
    with pytest.raises(ConfigError, match=r"run\.store is 'hdf5'; wanted one of 'tar', 'zarr'"):
        assert replace(job, overrides=("run.store=hdf5",)).settings
