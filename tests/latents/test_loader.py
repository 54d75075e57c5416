"""Batches come in order, however they are read ahead, and go on where they were left."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.cache.loader import Batch, WindowLoader
from latents.errors import ConfigError, DamagedError
from tests.latents.window_caches import VIDEO, FakeWindows, batches_of

NUM_WINDOWS, BATCH_SIZE = 50, 8


def loader(
    *,
    windows: FakeWindows | None = None,
    batch_size: int = BATCH_SIZE,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
    stop_step: int | None = None,
    prefetch: int = 2,
) -> WindowLoader:
    windows = windows or FakeWindows(NUM_WINDOWS)
    return WindowLoader(
        windows,
        batches_of(windows, batch_size, rank=rank, world_size=world_size),
        first_step=first_step,
        stop_step=stop_step,
        prefetch=prefetch,
    )


def expected(step: int) -> list[int]:
    return batches_of(FakeWindows(NUM_WINDOWS), BATCH_SIZE).at(step)[1].tolist()


def window_of_step(step: int) -> int:
    """The first window of a step's batch."""
    return expected(step)[0]


def threads_of_loaders() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("window-loader")]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
def test_batches_come_in_order_of_step(prefetch: int) -> None:
    with loader(prefetch=prefetch) as batches:
        taken = list(islice(batches, 20))

    assert [batch.step for batch in taken] == list(range(20))
    for batch in taken:
        assert batch.windows.tolist() == expected(batch.step)
        assert batch.arrays[VIDEO][:, 0].tolist() == expected(batch.step)
    assert taken[6].epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


@given(
    first=st.integers(0, 9),
    counts=st.lists(st.integers(0, 4), max_size=4),
    prefetch=st.integers(0, 3),
)
def test_iterating_again_goes_on_after_the_last_one_given(
    first: int, counts: list[int], prefetch: int
) -> None:
    with loader(first_step=first, prefetch=prefetch) as batches:
        steps = [batch.step for count in counts for batch in islice(batches, count)]
    assert steps == list(range(first, first + sum(counts)))


@pytest.mark.parametrize("stopped", [0, 7])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_what_was_stopped_goes_on_at_any_world_size(stopped: int, world_size: int) -> None:
    with loader() as before:
        for _ in islice(before, stopped):
            pass
        state = before.state_dict()

    ranks = [loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts: list[Batch] = []
    for rank in ranks:
        rank.load_state_dict(state)
        parts += islice(rank, 1)
        rank.close()

    assert {part.step for part in parts} == {stopped}
    assert np.concatenate([part.windows for part in parts]).tolist() == expected(stopped)


def test_the_state_counts_what_was_given_and_not_what_was_read_ahead() -> None:
    windows = FakeWindows(NUM_WINDOWS)
    with loader(windows=windows, prefetch=5) as batches:
        assert batches.state_dict()["step"] == 0
        for batch in islice(batches, 3):
            assert batches.state_dict()["step"] == batch.step + 1
        assert batches.state_dict() == {
            "step": 3,
            "seed": 3,
            "num_windows": NUM_WINDOWS,
            "batch_size": BATCH_SIZE,
        }
    assert windows.num_taken > 3


def test_a_state_of_other_batches_is_refused() -> None:
    others = loader(batch_size=16)
    with pytest.raises(ConfigError, match="batch_size was 8 and is 16"):
        others.load_state_dict(loader().state_dict())


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_no_more_is_read_ahead_than_asked(prefetch: int) -> None:
    windows = FakeWindows(NUM_WINDOWS)
    with loader(windows=windows, prefetch=prefetch) as batches:
        for given_before, _ in enumerate(islice(batches, 10)):
            assert windows.num_taken <= given_before + 1 + prefetch


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_a_fault_is_raised_by_its_batch_and_tried_again_by_the_next_iteration(
    prefetch: int,
) -> None:
    damage = DamagedError("shards/a.tar", 7, "fails its CRC-32C")
    windows = FakeWindows(NUM_WINDOWS, damaged={window_of_step(3): damage})
    with loader(windows=windows, prefetch=prefetch) as batches:
        iterator = iter(batches)
        assert [next(iterator).step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DamagedError, match="fails its CRC-32C"):
            next(iterator)
        assert batches.state_dict()["step"] == 3

        windows.damaged.clear()
        assert next(iter(batches)).step == 3


def test_it_ends_where_it_is_told_to_and_reads_nothing_beyond() -> None:
    windows = FakeWindows(NUM_WINDOWS)
    with loader(windows=windows, first_step=4, stop_step=9, prefetch=3) as batches:
        assert [batch.step for batch in batches] == [4, 5, 6, 7, 8]
        assert list(batches) == []
    assert windows.num_taken == 5


@pytest.mark.parametrize("num_given", [0, 1, 3])
def test_closing_leaves_no_thread(num_given: int) -> None:
    batches = loader(prefetch=3)
    for _ in islice(batches, num_given):
        pass
    batches.close()
    batches.close()
    assert threads_of_loaders() == []


def test_a_loader_that_is_closed_while_it_is_iterated_says_so() -> None:
    batches = loader()
    iterator = iter(batches)
    next(iterator)
    batches.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        next(iterator)
    with pytest.raises(ValueError, match="the loader is closed"):
        next(iter(batches))


def test_a_loader_that_is_forgotten_ends_its_thread() -> None:
    batches = loader()
    iterator = iter(batches)
    next(iterator)
    threads = [thread for thread in threading.enumerate() if "window-loader" in thread.name]

    del iterator, batches
    for thread in threads:
        thread.join(timeout=5)
    assert threads_of_loaders() == []


def test_an_order_of_other_windows_is_refused() -> None:
    windows, others = FakeWindows(50), FakeWindows(60)
    with pytest.raises(ValueError, match="the order is of 60 windows, but there are 50"):
        WindowLoader(windows, batches_of(others, 8))


def test_reading_less_than_nothing_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetch is -1"):
        loader(prefetch=-1)
