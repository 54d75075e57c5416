"""The order of training: every window once an epoch, keyed by (seed, epoch) and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.cache.order import TrainingOrder


@given(num_windows=st.integers(1, 2000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_an_epoch_has_every_window_once(num_windows: int, seed: int, epoch: int) -> None:
    order = TrainingOrder(num_windows=num_windows, seed=seed)

    epochs, windows = order.at(epoch * num_windows, num_windows)

    assert set(epochs.tolist()) == {epoch}
    assert sorted(windows.tolist()) == list(range(num_windows))


@given(
    num_windows=st.integers(1, 50),
    first=st.integers(0, 500),
    sizes=st.lists(st.integers(0, 60), max_size=8),
)
def test_batches_of_any_size_are_the_same_order(
    num_windows: int, first: int, sizes: list[int]
) -> None:
    order = TrainingOrder(num_windows=num_windows, seed=1)
    starts = np.cumsum([first, *sizes])

    parts = [order.at(int(start), size) for start, size in zip(starts, sizes, strict=False)]

    epochs, windows = order.at(first, sum(sizes))
    assert [one for part in parts for one in part[0].tolist()] == epochs.tolist()
    assert [one for part in parts for one in part[1].tolist()] == windows.tolist()


def test_a_batch_that_an_epoch_cannot_fill_goes_on_with_the_next() -> None:
    epochs, _ = TrainingOrder(num_windows=5, seed=0).at(3, 4)
    assert epochs.tolist() == [0, 0, 1, 1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(TrainingOrder(num_windows=100, seed=seed).at(100 * epoch, 100)[1])
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_order_stays_what_it_was() -> None:
    epochs, windows = TrainingOrder(num_windows=10, seed=7).at(0, 20)
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert windows.tolist() == [
        *(1, 4, 2, 5, 8, 7, 0, 6, 9, 3),
        *(3, 8, 1, 7, 2, 9, 5, 6, 4, 0),
    ]


def test_neighbours_are_parted() -> None:
    # Of a shuffled order, a window follows its neighbour about once in an epoch.
    _, windows = TrainingOrder(num_windows=10_000, seed=0).at(0, 10_000)
    assert np.count_nonzero(np.abs(np.diff(windows)) == 1) < 20
    # Each quarter of an epoch comes from everywhere: means of 2,500 of 10,000 lie this near.
    means = windows.reshape(4, -1).mean(axis=1)
    assert np.abs(means - 4999.5).max() < 4 * 10_000 / np.sqrt(12 * 2500)


def test_any_position_of_a_hundred_million_windows_is_found_at_once() -> None:
    order = TrainingOrder(num_windows=10**8, seed=0)
    epochs, windows = order.at(123 * 10**8 - 2, 4)
    assert epochs.tolist() == [122, 122, 123, 123]
    assert all(0 <= window < 10**8 for window in windows)


@pytest.mark.parametrize("num_windows", [0, -1, 2**62])
def test_impossible_numbers_of_windows_are_refused(num_windows: int) -> None:
    with pytest.raises(ValueError, match="num_windows is"):
        TrainingOrder(num_windows=num_windows, seed=0)
