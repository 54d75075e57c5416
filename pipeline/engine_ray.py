"""The engine on Ray: actors that decode, actors that encode, and a loop that feeds them.

Ray schedules; it never decides what is committed. Results go to the one committer of the
driver, and what a lost actor had in hand is tried again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import ray

from latents.errors import ConfigError
from pipeline.figures import Figures
from pipeline.job import EncodeJob, Task
from pipeline.ray_decode_actor import DecodeActor
from pipeline.ray_encode_actor import EncodeActor
from pipeline.ray_metrics import RayMetrics
from pipeline.ray_pool import ActorPool, PoolSizes, pool_sizes
from pipeline.ray_run import Cluster, RayRun
from pipeline.ray_start import start_ray
from pipeline.ray_times import ActorTimes
from pipeline.ray_weights import send_weights
from pipeline.stage_clock import StageTime
from pipeline.stages import StageEvent
from pipeline.stop_request import StopRequest

ACTOR_CPUS = 0.5
"""Of a core, for each decoding actor and each that encodes on cores: one of the two is mostly
waiting."""


class RayEngine:
    """Runs the stages on Ray; starts it on this machine where no cluster is named.

    Args:
        num_workers: Decoding actors, and encoding actors where there is no GPU; 0 for as many
            as the cluster has cores.
        in_flight_bytes: Bound on decoded clips waiting for an encoder; see `RayRun`.
        encoder_gpus: GPUs of each encoding actor on CUDA: a share of one, or some whole ones.
        attempts: Workers that must die at a segment before it is given up.
        address: Of a cluster to join. Its nodes get this installation's packages and the models.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        in_flight_bytes: int,
        encoder_gpus: float = 1.0,
        attempts: int = 5,
        address: str | None = None,
    ) -> None:
        self._num_workers = num_workers
        self._in_flight_bytes = in_flight_bytes
        self._encoder_gpus = encoder_gpus
        self._attempts = attempts
        self._address = address
        self._metrics: RayMetrics | None = None

    def start(self) -> None:
        """Joins the cluster or starts Ray, unless this process has done so already."""
        start_ray(address=self._address, num_workers=self._num_workers)

    def run(
        self, job: EncodeJob, tasks: Sequence[Task], stop: StopRequest
    ) -> Generator[StageEvent | StageTime, None, None]:
        """Works on all tasks, in any order of completion.

        Asked to finish, it begins no source, and ends those in hand after the clip they are at.

        Raises:
            JobError: A fault that is not a clip's, from whichever actor met it.
        """
        gpus = self._gpus_per_encoder(job)
        run = RayRun(
            tasks,
            cluster=Cluster(
                sizes=lambda: self._sizes(len(tasks), gpus),
                nodes_alive=lambda: {node["NodeID"] for node in _nodes_alive()},
            ),
            decoders=_pool(ray.remote(num_cpus=ACTOR_CPUS)(DecodeActor), job),
            encoders=_pool(
                # On a GPU an encoder takes no core, so that decoders never keep it waiting.
                ray.remote(num_cpus=0 if gpus else ACTOR_CPUS, num_gpus=gpus)(EncodeActor),
                job,
                send_weights(job) if self._address else (),
            ),
            in_flight_bytes=self._in_flight_bytes,
            attempts=self._attempts,
            times=ActorTimes(has_gpus=gpus > 0),
        )
        try:
            yield from run.events(stop)
        finally:
            run.close()

    def publish(self, figures: Figures) -> None:
        """Brings the figures of a run to Ray's metrics; called from one thread, once started."""
        self._metrics = self._metrics or RayMetrics()
        self._metrics.publish(figures)

    def _gpus_per_encoder(self, job: EncodeJob) -> float:
        if not job.device.startswith("cuda"):
            return 0
        if not self._encoder_gpus:
            raise ConfigError(
                f"run.encoder_gpus is 0 and run.device {job.device}: Ray shows no GPU to an actor "
                "that asks for none; use --set run.device=cpu, or a share such as 0.25"
            )
        if not any(node["Resources"].get("GPU") for node in _nodes_alive()):
            raise ConfigError(
                "run.device is cuda, but the Ray cluster has no GPU; use --set run.device=cpu"
            )
        return self._encoder_gpus

    def _sizes(self, num_tasks: int, gpus_per_encoder: float) -> PoolSizes:
        return pool_sizes(
            [node["Resources"] for node in _nodes_alive()],
            num_workers=self._num_workers,
            num_tasks=num_tasks,
            gpus_per_encoder=gpus_per_encoder,
        )


def _pool(actor: Any, *arguments: Any) -> ActorPool[Any]:
    def start() -> tuple[Any, Any]:
        handle = actor.remote(*arguments)
        return handle, handle.ready.remote()

    return ActorPool(start=start, end=ray.kill)


def _nodes_alive() -> list[Mapping[str, Any]]:
    nodes: list[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
