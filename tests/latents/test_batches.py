"""The global batches are the same at any world size, from any step on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latents.cache.batches import GlobalBatches
from latents.cache.order import TrainingOrder
from latents.errors import ConfigError

Positions = list[tuple[int, int]]


def batches(
    *, num_windows: int = 50, seed: int = 0, batch_size: int = 8, rank: int = 0, world_size: int = 1
) -> GlobalBatches:
    order = TrainingOrder(num_windows=num_windows, seed=seed)
    return GlobalBatches(order=order, batch_size=batch_size, rank=rank, world_size=world_size)


def global_batch(step: int, *, world_size: int, num_windows: int, batch_size: int) -> Positions:
    """(epoch, window) of all ranks, one after the other."""
    positions: Positions = []
    for rank in range(world_size):
        part = batches(
            num_windows=num_windows, batch_size=batch_size, rank=rank, world_size=world_size
        )
        epochs, windows = part.at(step)
        positions += zip(epochs.tolist(), windows.tolist(), strict=True)
    return positions


@given(
    num_windows=st.integers(1, 200),
    parts=st.integers(1, 8),
    step=st.integers(0, 10**6),
    world_size=st.sampled_from([2, 4, 8]),
)
def test_any_world_size_has_the_same_global_batches(
    num_windows: int, parts: int, step: int, world_size: int
) -> None:
    one, many = (
        global_batch(step, world_size=size, num_windows=num_windows, batch_size=8 * parts)
        for size in (1, world_size)
    )
    assert one == many


@given(
    num_windows=st.integers(1, 100),
    num_epochs=st.integers(1, 4),
    world_size=st.sampled_from([1, 2, 4, 8]),
)
def test_every_epoch_has_every_window_once_and_carries_over(
    num_windows: int, num_epochs: int, world_size: int
) -> None:
    num_steps = num_epochs * num_windows // 8
    seen = [
        position
        for step in range(num_steps)
        for position in global_batch(
            step, world_size=world_size, num_windows=num_windows, batch_size=8
        )
    ]
    whole_epochs = [
        [window for epoch, window in seen if epoch == number]
        for number in range(num_steps * 8 // num_windows)
    ]
    assert [sorted(epoch) for epoch in whole_epochs] == [list(range(num_windows))] * len(
        whole_epochs
    )
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    assert len(seen) == len(set(seen)) == num_steps * 8


def test_a_rank_has_its_part_of_each_batch() -> None:
    _, everyone = batches(num_windows=50).at(3)
    parts = [batches(rank=rank, world_size=4) for rank in range(4)]

    assert [part.rank_size for part in parts] == [2] * 4
    assert [part.at(3)[1].tolist() for part in parts] == everyone.reshape(4, 2).tolist()


@given(step=st.integers(0, 10**12), world_size=st.sampled_from([1, 2, 4, 8]))
def test_a_position_is_kept_for_any_world_size(step: int, world_size: int) -> None:
    state = batches().state_at(step)

    assert all(isinstance(value, int) for value in state.values())
    assert batches(rank=world_size - 1, world_size=world_size).step_in(state) == step


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (batches(seed=1), "seed was 0 and is 1"),
        (batches(num_windows=51), "num_windows was 50 and is 51"),
        (batches(batch_size=16), "batch_size was 8 and is 16"),
        (batches(seed=2, batch_size=4), "seed was 0 and is 2, batch_size was 8 and is 4"),
    ],
)
def test_a_position_in_other_batches_is_refused(other: GlobalBatches, difference: str) -> None:
    with pytest.raises(ConfigError, match=difference):
        other.step_in(batches().state_at(3))


@pytest.mark.parametrize("change", [{"step": -1}, {"step": "3"}, {"seed": None}, {"another": 1}])
def test_what_is_no_position_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="this is no position in training"):
        batches().step_in(batches().state_at(3) | change)
    with pytest.raises(ConfigError, match="this is no position in training"):
        batches().step_in({})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"world_size": 3}, "batch_size is 8, of which 3 ranks cannot have equal parts"),
        ({"rank": 2, "world_size": 2}, r"rank is 2; it must be in \[0, 2\)"),
        ({"rank": -1}, r"rank is -1; it must be in \[0, 1\)"),
        ({"world_size": 0}, r"rank is 0; it must be in \[0, 0\)"),
    ],
)
def test_impossible_parts_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(**wrong)


def test_any_step_is_found_at_once_and_batches_are_the_callers_own() -> None:
    many = batches(num_windows=10**8, batch_size=1024)
    _, windows = many.at(10**9)
    kept = windows.copy()
    windows[:] = 0
    np.testing.assert_array_equal(many.at(10**9)[1], kept)
