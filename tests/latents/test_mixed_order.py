"""The order of training on several sources: each window as often as its source's weight says."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latents.cache.batches import GlobalBatches
from latents.cache.concatenated import ConcatenatedWindows
from latents.cache.loader import WindowLoader
from latents.cache.mixed_order import MAX_WEIGHT, MixedOrder
from latents.cache.order import TrainingOrder
from latents.cache.permutation import permuted, round_keys
from latents.errors import ConfigError
from tests.latents.window_caches import VIDEO, FakeWindows

Positions = list[tuple[int, int]]

SOURCES = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([0.125, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0])),
    min_size=1,
    max_size=4,
)
INTEGER_SOURCES = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 5)), min_size=1, max_size=4
)


def mixed(*sources: tuple[int, float], seed: int = 0) -> MixedOrder:
    counts, weights = zip(*sources, strict=True)
    return MixedOrder(source_windows=counts, weights=weights, seed=seed)


def positions(order: MixedOrder, first: int, count: int) -> Positions:
    epochs, windows = order.at(first, count)
    return list(zip(epochs.tolist(), windows.tolist(), strict=True))


def rank_part(order: MixedOrder, step: int, *, rank: int = 0, world_size: int = 1) -> Positions:
    batches = GlobalBatches(order=order, batch_size=8, rank=rank, world_size=world_size)
    epochs, windows = batches.at(step)
    return list(zip(epochs.tolist(), windows.tolist(), strict=True))


@given(sources=INTEGER_SOURCES, seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_an_epoch_has_a_window_as_often_as_its_weight(
    sources: list[tuple[int, int]], seed: int, epoch: int
) -> None:
    order = mixed(*sources, seed=seed)

    _, windows = order.at(epoch * order.epoch_windows, order.epoch_windows)

    wanted = [weight for num_windows, weight in sources for _ in range(num_windows)]
    assert np.bincount(windows, minlength=order.num_windows).tolist() == wanted


@given(first=st.integers(0, 10**6), half=st.integers(1, 50), other=st.integers(1, 50))
def test_half_a_weight_is_every_window_once_in_two_epochs(
    first: int, half: int, other: int
) -> None:
    order = mixed((2 * half, 0.5), (other, 1.0))

    _, windows = order.at(2 * first * order.epoch_windows, 2 * order.epoch_windows)

    assert np.bincount(windows).tolist() == [1] * 2 * half + [2] * other


@given(sources=SOURCES, num_epochs=st.integers(1, 12))
def test_each_sources_own_epochs_have_each_of_its_windows_once(
    sources: list[tuple[int, float]], num_epochs: int
) -> None:
    order = mixed(*sources)
    seen = positions(order, 0, num_epochs * order.epoch_windows)

    first = 0
    for num_windows, weight in sources:
        of_source = range(first, first + num_windows)
        its = Counter(epoch for epoch, window in seen if window in of_source)
        num_seen = num_epochs * max(1, round(weight * num_windows))
        whole, rest = divmod(num_seen, num_windows)
        assert its == dict.fromkeys(range(whole), num_windows) | ({whole: rest} if rest else {})
        first += num_windows
    assert len(set(seen)) == len(seen)


@given(sources=SOURCES, first=st.integers(0, 500), sizes=st.lists(st.integers(0, 60), max_size=8))
def test_batches_of_any_size_are_the_same_order(
    sources: list[tuple[int, float]], first: int, sizes: list[int]
) -> None:
    order = mixed(*sources)
    starts = np.cumsum([first, *sizes])

    parts = [positions(order, int(s), size) for s, size in zip(starts, sizes, strict=False)]

    assert [one for part in parts for one in part] == positions(order, first, sum(sizes))


def test_going_to_a_position_is_walking_there() -> None:
    order = mixed((20_000, 1.5), (7_001, 0.3))  # more than two blocks of positions an epoch
    walked = [one for step in range(9000) for one in positions(order, 8 * step, 8)]

    assert [positions(order, place, 3) for place in (0, 16_383, 32_099, 71_990)] == [
        walked[place : place + 3] for place in (0, 16_383, 32_099, 71_990)
    ]


@settings(max_examples=30)
@given(sources=SOURCES, step=st.integers(0, 10**6), world_size=st.sampled_from([2, 4, 8]))
def test_any_world_size_has_the_same_global_batches(
    sources: list[tuple[int, float]], step: int, world_size: int
) -> None:
    order = mixed(*sources)

    parts = [rank_part(order, step, rank=r, world_size=world_size) for r in range(world_size)]

    assert [one for part in parts for one in part] == rank_part(order, step)


def by_one(order: MixedOrder, position: int) -> tuple[int, int]:
    """Own epoch and window of one position, found plainly."""
    outer = TrainingOrder(num_windows=order.epoch_windows, seed=order.seed)
    number, first, source = int(outer.at(position, 1)[1][0]), 0, 0
    sizes = order.source_windows
    while number >= (num_seen := max(1, round(order.weights[source] * sizes[source]))):
        number, first, source = number - num_seen, first + sizes[source], source + 1
    size = sizes[source]
    epoch, place = divmod(position // order.epoch_windows * num_seen + number, size)
    keys = round_keys(f"order {order.seed} source {source} {epoch}")[:, None]
    return epoch, first + int(permuted(np.array([place]), size=size, keys=keys)[0])


@settings(max_examples=30)
@given(sources=SOURCES, seed=st.integers(0, 2**63), first=st.integers(0, 10**6))
def test_positions_together_are_what_each_is_alone(
    sources: list[tuple[int, float]], seed: int, first: int
) -> None:
    order = mixed(*sources, seed=seed)
    wanted = [by_one(order, position) for position in range(first, first + 40)]
    assert positions(order, first, 40) == wanted


def test_the_order_stays_what_it_was() -> None:
    epochs, windows = mixed((4, 1.0), (3, 2.0), seed=7).at(0, 20)
    assert windows.tolist() == [1, 4, 3, 6, 4, 6, 2, 5, 5, 0, 2, 4, 1, 5, 0, 6, 5, 6, 4, 3]
    assert epochs.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 3, 1, 3, 1, 3, 2, 2, 2, 1]


def test_epochs_and_seeds_and_sources_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(3):
        order = mixed((100, 1.0), (100, 1.0), seed=seed)
        for epoch in range(3):
            _, windows = order.at(200 * epoch, 200)
            orders |= {tuple(windows[windows < 100]), tuple(windows[windows >= 100] - 100)}
    assert len(orders) == 18


def test_sources_are_mixed_all_along() -> None:
    # Of a shuffled epoch, each tenth has a quarter of its windows from the first source.
    order = mixed((5_000, 1.0), (7_500, 2.0))
    _, windows = order.at(0, 20_000)
    shares = (windows.reshape(10, -1) < 5_000).mean(axis=1)
    assert np.abs(shares - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_any_position_of_a_hundred_million_windows_is_found_at_once() -> None:
    order = mixed((10**8, 0.5), (3, 1000.0), (2**60 + 1, 1.0))
    assert order.epoch_windows == 5 * 10**7 + 3000 + 2**60 + 1
    epochs, windows = mixed((10**8, 2.0), (10, 100.0)).at(10**15, 64)
    assert epochs.min() > 10**6
    assert windows.max() < 10**8 + 10


@given(step=st.integers(0, 10**12), world_size=st.sampled_from([1, 2, 4, 8]))
def test_a_position_is_kept_for_any_world_size(step: int, world_size: int) -> None:
    order = mixed((50, 1.0), (10, 2.0))
    state = GlobalBatches(order=order, batch_size=8).state_at(step)

    assert all(isinstance(value, int) for value in state.values())
    ranks = GlobalBatches(order=order, batch_size=8, rank=world_size - 1, world_size=world_size)
    assert ranks.step_in(state) == step


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_a_loader_goes_on_at_another_world_size(world_size: int) -> None:
    windows = ConcatenatedWindows([FakeWindows(30), FakeWindows(9)], names=("A", "B"))
    order = mixed((30, 1.0), (9, 3.0))
    with WindowLoader(windows, GlobalBatches(order=order, batch_size=8)) as loader:
        read = [next(iter(loader)) for _ in range(4)]
        state = loader.state_dict()

    parts = []
    for rank in range(world_size):
        batches = GlobalBatches(order=order, batch_size=8, rank=rank, world_size=world_size)
        with WindowLoader(windows, batches) as loader:
            loader.load_state_dict(state)
            parts.append(next(iter(loader)))

    assert [batch.step for batch in (*read, *parts)] == [*range(4), *[4] * world_size]
    numbers = np.concatenate([part.windows for part in parts])
    assert numbers.tolist() == order.at(32, 8)[1].tolist()
    stored = np.concatenate([part.arrays[VIDEO][:, 0] for part in parts])
    assert stored.tolist() == np.where(numbers < 30, numbers, numbers - 30).tolist()


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (mixed((50, 1.0), (10, 3.0)), "source_2_windows_an_epoch was 20 and is 30"),
        (
            mixed((50, 0.5), (10, 1.0)),
            "source_1_windows_an_epoch was 50 and is 25, "
            "source_2_windows_an_epoch was 20 and is 10",
        ),
        (
            mixed((10, 2.0), (50, 1.0)),
            "source_1_windows was 50 and is 10, source_2_windows was 10 and is 50",
        ),
        (mixed((50, 1.0), (10, 2.0), seed=1), "seed was 0 and is 1"),
        (mixed((50, 1.0), (10, 2.0), (1, 1.0)), "wanted counts of .* source_3_windows"),
        (TrainingOrder(num_windows=60, seed=0), "wanted counts of step, seed, num_windows, batch"),
    ],
)
def test_a_position_in_another_mixture_is_refused(
    other: MixedOrder | TrainingOrder, difference: str
) -> None:
    state = GlobalBatches(order=mixed((50, 1.0), (10, 2.0)), batch_size=8).state_at(3)
    with pytest.raises(ConfigError, match=difference):
        GlobalBatches(order=other, batch_size=8).step_in(state)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2 * MAX_WEIGHT])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="it must be above 0 and at most 1000"):
        mixed((5, 1.0), (5, weight))


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ((), (), "there are 0 sources and 0 weights"),
        ((5,), (1.0, 2.0), "there are 1 sources and 2 weights"),
        ((5, 0), (1.0, 1.0), r"source_windows is \(5, 0\); each must be at least 1"),
        ((2**61, 2**61), (0.5, 0.5), "both must be below"),
        ((2**60,), (4.0,), "both must be below"),
    ],
)
def test_impossible_sources_are_refused(
    counts: tuple[int, ...], weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MixedOrder(source_windows=counts, weights=weights, seed=0)
