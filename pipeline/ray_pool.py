"""How many actors a cluster has room for, and which of them may be given work.

It knows nothing of Ray: actors are started and ended by whoever made the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from latents.errors import JobError

MAX_FAILED_STARTS = 20
"""Actors that may die while they start, one after the other, before the fault is not theirs."""

Actor = TypeVar("Actor", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSizes:
    """How many actors of each kind are wanted."""

    decoders: int
    encoders: int


def pool_sizes(
    nodes: Sequence[Mapping[str, float]],
    *,
    num_workers: int,
    num_tasks: int,
    gpus_per_encoder: float,
) -> PoolSizes:
    """As many actors as there is room for: on each core a decoder and, without GPUs, an encoder.

    At least one of each is wanted: where there is no room, it waits until there is.

    Args:
        nodes: Resources of each node that is alive: cores as ``CPU``, GPUs as ``GPU``.
        num_workers: Decoders at most, and encoders where they use no GPU; 0 for no bound.
        num_tasks: More actors than tasks are of no use.
        gpus_per_encoder: GPUs that an encoder takes, a share of one or some whole ones; 0 where
            encoders run on cores.
    """
    num_cores = sum(int(node.get("CPU", 0)) for node in nodes)
    num_decoders = min(num_workers or num_cores, num_cores, num_tasks)
    num_encoders = num_decoders
    if gpus_per_encoder:
        fit = (_encoders_on(int(node.get("GPU", 0)), gpus_per_encoder) for node in nodes)
        num_encoders = min(sum(fit), num_tasks)
    return PoolSizes(decoders=max(1, num_decoders), encoders=max(1, num_encoders))


def _encoders_on(num_gpus: int, gpus_per_encoder: float) -> int:
    """Encoders that fit on a node's GPUs; a share lies on one of them."""
    if gpus_per_encoder > 1:
        return num_gpus // int(gpus_per_encoder)
    # A share that is not exact in binary, such as a tenth, still fits ten times.
    return num_gpus * int(1 / gpus_per_encoder + 1e-6)


class ActorPool(Generic[Actor]):
    """Actors of one kind: starting, idle, busy. Only one that is ready is given work.

    An actor that is lost is replaced while fewer than wanted are left. A replacement that finds no
    room waits for it, with nothing in its hands, and is given up when the cluster stays smaller.

    Args:
        start: Begins an actor; gives it and what will say that it is ready.
        end: Ends an actor, whatever it does.
    """

    def __init__(
        self,
        *,
        start: Callable[[], tuple[Actor, Hashable]],
        end: Callable[[Actor], None],
    ) -> None:
        self._start, self._end = start, end
        self._starting: dict[Hashable, Actor] = {}
        self._idle: list[Actor] = []
        self._nodes: dict[Actor, str] = {}
        self._wanted = self._asked = 0
        self._num_failed_starts = 0

    @property
    def starting(self) -> Collection[Hashable]:
        """What will say that an actor is ready, of those that have not said so."""
        return self._starting.keys()

    @property
    def num_ready(self) -> int:
        """Actors that work or may be given work."""
        return len(self._nodes)

    def node_of(self, actor: Actor) -> str:
        """Where a ready actor runs."""
        return self._nodes[actor]

    def resize(self, num_wanted: int) -> list[Actor]:
        """Wants so many actors; returns those ended at their work, which others must do again.

        It grows at once. It shrinks when fewer are wanted twice in a row: a node that left takes
        actors along, of which is heard a moment later, and those that are alive are to stay.
        """
        self._wanted = max(num_wanted, min(self._wanted, self._asked))
        self._asked = num_wanted
        interrupted = [self._shrink() for _ in range(self._num_actors - self._wanted)]
        self._fill()
        return [actor for actor in interrupted if actor is not None]

    def became_ready(self, reference: Hashable, *, node: str) -> None:
        """An actor runs on a node and may be given work."""
        actor = self._starting.pop(reference)
        self._nodes[actor] = node
        self._idle.append(actor)
        self._num_failed_starts = 0

    def failed_to_start(self, reference: Hashable) -> None:
        """An actor died while it started; another one takes its place.

        Raises:
            JobError: So did `MAX_FAILED_STARTS` one after the other.
        """
        self._end(self._starting.pop(reference))
        self._num_failed_starts += 1
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            raise JobError(
                f"{self._num_failed_starts} of Ray's actors died one after the other while they "
                "started; look for the reason in Ray's logs (/tmp/ray/session_latest/logs), as a "
                "rule too little memory for so many: lower run.workers"
            )
        self._fill()

    def take(self) -> Actor | None:
        """An idle actor, which is busy from now on; None where there is none."""
        return self._idle.pop() if self._idle else None

    def put_back(self, actor: Actor) -> None:
        """A busy actor is idle."""
        self._idle.append(actor)

    def lose(self, actor: Actor) -> str:
        """A busy actor is ended, dead or not, and replaced; returns the node that it was on."""
        self._end(actor)
        node = self._nodes.pop(actor)
        self._fill()
        return node

    def close(self) -> None:
        """Ends all actors."""
        for actor in [*self._starting.values(), *self._nodes]:
            self._end(actor)
        self._starting.clear()
        self._nodes.clear()
        self._idle.clear()

    @property
    def _num_actors(self) -> int:
        return len(self._starting) + len(self._nodes)

    def _fill(self) -> None:
        while self._num_actors < self._wanted:
            actor, reference = self._start()
            self._starting[reference] = actor

    def _shrink(self) -> Actor | None:
        """Ends one actor, of those that lose least; returns it if it was busy."""
        if self._starting:
            self._end(self._starting.popitem()[1])
            return None
        is_idle = bool(self._idle)
        actor = self._idle.pop() if is_idle else next(reversed(self._nodes))
        del self._nodes[actor]
        self._end(actor)
        return None if is_idle else actor
