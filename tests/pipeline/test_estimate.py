"""What a plan will store and how long it will take, told beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latents.fields import Level
from pipeline.estimate import Estimate, estimate
from pipeline.planned_job import PlannedJob
from pipeline.sources import find_sources
from tests.pipeline.small_jobs import (
    ALL_LEVELS,
    BOTH,
    NUM_SCENES,
    SmallCache,
    SmallJob,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def stored_bytes(cache: SmallCache) -> int:
    return sum(file.num_bytes for file in cache.layout.storage.list(""))


def cost(planned: PlannedJob) -> Estimate:
    return estimate(
        planned.plan, planned.snapshot, planned.wanted, planned.settings, free_bytes=10**9
    )


@pytest.mark.parametrize("levels", [("kl",), ALL_LEVELS], ids=["kl", "all levels"])
def test_what_new_sources_will_store_is_told_within_a_quarter(
    levels: tuple[Level, ...], cache: SmallCache, job: SmallJob
) -> None:
    before = stored_bytes(cache)

    done = cache.ingest(replace(job, levels=levels), "scenes:1:12:2")

    assert cost(done.planned).num_clips == 12
    stored = stored_bytes(cache) - before
    assert cost(done.planned).num_bytes == pytest.approx(stored, rel=0.25)


def test_what_an_update_will_store_is_told_within_a_quarter(
    cache: SmallCache, job: SmallJob, other_kl_vae: Path
) -> None:
    cache.ingest(job, "scenes:1:8:2")
    before = stored_bytes(cache)

    done = cache.refresh(replace(job, kl_vae=other_kl_vae, levels=BOTH))

    assert cost(done.planned).num_clips == NUM_SCENES + 8
    stored = stored_bytes(cache) - before
    assert cost(done.planned).num_bytes == pytest.approx(stored, rel=0.25)


def test_time_is_told_once_clips_of_the_kind_were_made(cache: SmallCache, job: SmallJob) -> None:
    more = find_sources(["scenes:1:2:2"])
    timed = cost(cache.plan(job, more))
    assert timed.encode_seconds == pytest.approx(2 * mean_seconds(cache), rel=1e-6)
    assert cost(cache.plan(replace(job, levels=("kl",)), more)).encode_seconds is None


def mean_seconds(cache: SmallCache) -> float:
    rows: list[dict[str, Any]] = cache.committed(-1)["latents"]
    return float(np.mean([row["encode_seconds"] for row in rows]))


def test_too_little_room_is_told(cache: SmallCache, job: SmallJob) -> None:
    planned = cache.plan(job, find_sources(["scenes:1:2:2"]))
    one = estimate(planned.plan, planned.snapshot, planned.wanted, planned.settings, free_bytes=9)
    assert not one.fits
    assert cost(planned).fits
