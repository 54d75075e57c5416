"""Only actors that are ready are given work, and their number follows the cluster."""

from __future__ import annotations

import pytest

from latents.errors import JobError
from pipeline.ray_pool import MAX_FAILED_STARTS, ActorPool, PoolSizes, pool_sizes


class Stage:
    """Starts actors that are numbers; what says that actor n is ready is ``ready n``."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.pool: ActorPool[int] = ActorPool(start=self._start, end=self.ended.append)

    def _start(self) -> tuple[int, str]:
        self.started.append(len(self.started))
        return self.started[-1], f"ready {self.started[-1]}"

    def with_ready(self, num_actors: int) -> ActorPool[int]:
        self.pool.resize(num_actors)
        for actor in range(num_actors):
            self.pool.became_ready(f"ready {actor}", node=f"node {actor}")
        return self.pool


def test_an_actor_gets_work_only_after_it_is_ready() -> None:
    stage = Stage()
    stage.pool.resize(2)

    assert stage.started == [0, 1]
    assert stage.pool.take() is None
    stage.pool.became_ready("ready 1", node="here")
    assert (stage.pool.take(), stage.pool.take()) == (1, None)
    assert list(stage.pool.starting) == ["ready 0"]


def test_a_lost_actor_is_replaced_and_named_with_its_node() -> None:
    stage = Stage()
    pool = stage.with_ready(2)
    lost = pool.take()
    assert lost is not None

    assert pool.lose(lost) == f"node {lost}"

    assert stage.ended == [lost]
    assert list(pool.starting) == ["ready 2"]
    assert pool.num_ready == 1


def test_more_nodes_are_used_at_once() -> None:
    stage = Stage()
    stage.with_ready(1)

    assert stage.pool.resize(3) == []

    assert stage.started == [0, 1, 2]


def test_replacements_without_room_are_given_up_once_the_cluster_stays_smaller() -> None:
    stage = Stage()
    pool = stage.with_ready(2)
    lost = pool.take()
    assert lost is not None
    pool.lose(lost)

    assert pool.resize(1) == []
    assert len(pool.starting) == 1  # the node may have died before its actors were missed
    assert pool.resize(1) == []

    assert stage.ended == [lost, 2]
    assert (len(pool.starting), pool.num_ready) == (0, 1)


def test_a_cluster_that_shrinks_for_a_moment_keeps_its_actors() -> None:
    stage = Stage()
    pool = stage.with_ready(2)

    for num_wanted in (1, 2, 1, 2):
        pool.resize(num_wanted)

    assert stage.ended == []


def test_idle_actors_go_before_busy_ones_whose_work_is_given_back() -> None:
    stage = Stage()
    pool = stage.with_ready(3)
    busy = [pool.take(), pool.take()]

    pool.resize(2)
    assert pool.resize(2) == []
    pool.resize(1)
    (interrupted,) = pool.resize(1)

    assert interrupted in busy
    assert stage.ended == [0, interrupted]
    assert pool.num_ready == 1


def test_actors_that_die_while_they_start_end_the_job_after_a_while() -> None:
    stage = Stage()
    stage.pool.resize(1)
    for attempt in range(MAX_FAILED_STARTS - 1):
        stage.pool.failed_to_start(f"ready {attempt}")

    with pytest.raises(JobError, match="died one after the other while they started"):
        stage.pool.failed_to_start(f"ready {MAX_FAILED_STARTS - 1}")


def test_one_actor_that_starts_clears_those_that_did_not() -> None:
    stage = Stage()
    stage.pool.resize(1)
    for attempt in range(MAX_FAILED_STARTS - 1):
        stage.pool.failed_to_start(f"ready {attempt}")
    stage.pool.became_ready(f"ready {MAX_FAILED_STARTS - 1}", node="here")
    actor = stage.pool.take()
    assert actor is not None
    stage.pool.lose(actor)

    stage.pool.failed_to_start(f"ready {MAX_FAILED_STARTS}")

    assert len(stage.pool.starting) == 1


def test_closing_ends_all_actors() -> None:
    stage = Stage()
    pool = stage.with_ready(3)
    pool.take()
    pool.resize(4)

    pool.close()

    assert sorted(stage.ended) == [0, 1, 2, 3]
    assert pool.take() is None


CORES, GPUS = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "num_workers", "num_tasks", "gpus", "decoders", "encoders"),
    [
        ([CORES, CORES], 0, 100, 0, 8, 8),
        ([CORES, CORES], 3, 100, 0, 3, 3),
        ([CORES], 16, 100, 0, 4, 4),
        ([CORES], 0, 2, 0, 2, 2),
        ([CORES, GPUS], 0, 100, 1, 12, 2),
        ([GPUS, GPUS], 0, 100, 0.25, 16, 16),
        ([GPUS], 0, 100, 0.1, 8, 20),
        ([GPUS], 0, 100, 0.4, 8, 4),
        ([GPUS, GPUS], 0, 100, 2, 16, 2),
        ([GPUS], 0, 3, 0.25, 3, 3),
        ([{"CPU": 1.5}, {"CPU": 0.5}], 0, 100, 0, 1, 1),
        ([], 0, 100, 0, 1, 1),
        ([{"memory": 1e9}], 0, 100, 1, 1, 1),
    ],
)
def test_there_are_as_many_actors_as_the_nodes_have_room_for(
    nodes: list[dict[str, float]],
    num_workers: int,
    num_tasks: int,
    gpus: float,
    decoders: int,
    encoders: int,
) -> None:
    found = pool_sizes(nodes, num_workers=num_workers, num_tasks=num_tasks, gpus_per_encoder=gpus)

    assert found == PoolSizes(decoders=decoders, encoders=encoders)
