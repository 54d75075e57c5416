"""Torch gets the same global batches from any number of workers and ranks, from any step on."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils.data import DataLoader

from latents.cache.reader import CachedLevel
from latents.cache.resident import ResidentWindows
from latents.cache.streaming import StreamingWindows
from latents.cache.torch_loader import TensorBatch, WindowDataLoader, WindowDataset
from latents.errors import ConfigError, DamagedError
from tests.latents.gloo_ranks import gather_digests
from tests.latents.window_caches import (
    VIDEO,
    batches_of,
    digest_of,
    digests_of,
    perceptual_level,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create .* worker processes"  # more than there are processors
)
BATCH_SIZE, NUM_STEPS = 12, 10
"""Three epochs of 40 windows."""


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> CachedLevel:
    return perceptual_level(tmp_path_factory.mktemp("level") / "cache")


@pytest.fixture(scope="module")
def windows(level: CachedLevel) -> Iterator[StreamingWindows]:
    with StreamingWindows(level, level.clips) as windows:
        yield windows


@pytest.fixture(scope="module")
def wanted(level: CachedLevel) -> list[str]:
    """Digests of the batches, as one process reads them."""
    resident = ResidentWindows(level, level.clips)
    return digests_of(resident, batches_of(resident, BATCH_SIZE), range(NUM_STEPS))


def digest(batch: TensorBatch) -> str:
    fields = {name: batch[name] for name in batch if name.startswith("perceptual.")}
    return digest_of(batch["epochs"], batch["windows"], fields)


def loader(
    windows: StreamingWindows,
    *,
    num_workers: int = 0,
    stop_step: int | None = NUM_STEPS,
    start_method: Literal["fork", "spawn"] = "fork",
) -> WindowDataLoader:
    return WindowDataLoader(
        windows,
        batches_of(windows, BATCH_SIZE),
        stop_step=stop_step,
        num_workers=num_workers,
        start_method=start_method,
    )


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_any_number_of_forked_workers_gives_the_same_batches(
    windows: StreamingWindows, wanted: list[str], num_workers: int
) -> None:
    taken = list(loader(windows, num_workers=num_workers))
    assert [int(batch["step"]) for batch in taken] == list(range(NUM_STEPS))
    assert [digest(batch) for batch in taken] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 4])
def test_any_number_of_spawned_workers_gives_the_same_batches(
    windows: StreamingWindows, wanted: list[str], num_workers: int
) -> None:
    taken = loader(windows, num_workers=num_workers, start_method="spawn")
    assert [digest(batch) for batch in taken] == wanted


@pytest.mark.parametrize("num_workers", [0, 3])
def test_torchs_own_loader_gives_them_in_order(
    windows: StreamingWindows, wanted: list[str], num_workers: int
) -> None:
    dataset = WindowDataset(windows, batches_of(windows, BATCH_SIZE), first_step=2, stop_step=9)
    taken = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    assert [digest(batch) for batch in taken] == wanted[2:9]


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_fewer_steps_than_workers(
    windows: StreamingWindows, wanted: list[str], num_steps: int
) -> None:
    taken = loader(windows, num_workers=3, stop_step=num_steps)
    assert [digest(batch) for batch in taken] == wanted[:num_steps]


def test_the_state_counts_what_was_given_and_goes_on_with_other_workers(
    windows: StreamingWindows, wanted: list[str]
) -> None:
    before = loader(windows, num_workers=2)
    for batch in islice(before, 3):
        assert before.state_dict()["step"] == int(batch["step"]) + 1

    after = loader(windows, num_workers=3)
    after.load_state_dict(before.state_dict())
    assert [digest(batch) for batch in after] == wanted[3:]
    assert list(after) == []


def test_iterating_again_goes_on(windows: StreamingWindows, wanted: list[str]) -> None:
    batches = loader(windows, stop_step=None)
    parts = [digest(batch) for count in (2, 0, 3) for batch in islice(batches, count)]
    assert parts == wanted[:5]


def test_a_state_of_other_batches_is_refused(windows: StreamingWindows) -> None:
    other = WindowDataLoader(windows, batches_of(windows, 16))
    with pytest.raises(ConfigError, match="batch_size was 12 and is 16"):
        other.load_state_dict(loader(windows).state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_of_a_worker_is_raised_as_what_it_is(tmp_path: Path, num_workers: int) -> None:
    level = perceptual_level(tmp_path / "cache", num_clips=4)
    row = level.clips[0].rows[VIDEO]
    Path(level.layout.url, level.layout.shard(row.shard)).unlink()
    with StreamingWindows(level, level.clips) as windows:
        batches = loader(windows, num_workers=num_workers)
        with pytest.raises(DamagedError, match="the shard is missing") as caught:
            list(batches)
    assert caught.value.path == f"shards/{row.shard}"
    assert batches.state_dict()["step"] == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_torchs_random_numbers_are_left_as_they_were(
    windows: StreamingWindows, num_workers: int
) -> None:
    before = torch.get_rng_state()
    next(iter(loader(windows, num_workers=num_workers)))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_order_of_other_windows_is_refused(windows: StreamingWindows, tmp_path: Path) -> None:
    others = perceptual_level(tmp_path, num_clips=2)
    batches = batches_of(ResidentWindows(others, others.clips), BATCH_SIZE)
    with pytest.raises(ValueError, match="the order is of 10 windows, but there are 40"):
        WindowDataset(windows, batches)
    with pytest.raises(ValueError, match="the order is of 10 windows, but there are 40"):
        WindowDataLoader(windows, batches)


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_global_batches_from_any_step(
    windows: StreamingWindows, wanted: list[str], tmp_path: Path
) -> None:
    worlds = [(1, 0, NUM_STEPS), (2, 0, NUM_STEPS), (4, 0, NUM_STEPS), (4, 6, NUM_STEPS)]
    context: Any = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=gather_digests, args=(rank, windows, BATCH_SIZE, worlds, tmp_path))
        for rank in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)

    assert [rank.exitcode for rank in ranks] == [0] * 4
    of_worlds = json.loads((tmp_path / "0.json").read_text())
    assert of_worlds == [wanted, wanted, wanted, wanted[6:]]
    assert json.loads((tmp_path / "3.json").read_text()) == of_worlds[2:]
