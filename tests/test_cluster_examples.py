"""The files for clusters are what the autoscaler and KubeRay take, and their commands are ours."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import mmldm

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
RAY_JOB_KEYS = {
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
GROUP_KEYS = {"rayStartParams", "template"}
WORKER_KEYS = GROUP_KEYS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def parsed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return found


def ray_folder() -> Path:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def containers(job: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each group of nodes and its only container."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        yield group, container


def test_the_cluster_is_one_that_the_installed_ray_starts() -> None:
    schema = json.loads((ray_folder() / "autoscaler" / "ray-schema.json").read_text())
    cluster = parsed("cluster.yaml")

    jsonschema.validate(cluster, schema)

    kinds = cluster["available_node_types"]
    assert cluster["head_node_type"] in kinds
    workers = [kind for name, kind in kinds.items() if name != cluster["head_node_type"]]
    assert sum(kind["max_workers"] for kind in workers) <= cluster["max_workers"]
    assert all(1 <= kind["min_workers"] <= kind["max_workers"] for kind in workers)


def test_a_cluster_with_an_unknown_key_would_be_refused() -> None:
    schema = json.loads((ray_folder() / "autoscaler" / "ray-schema.json").read_text())

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parsed("cluster.yaml") | {"worker_nodes": {}}, schema)


def test_the_job_has_the_parts_of_a_ray_job() -> None:
    job = parsed("rayjob.yaml")

    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) == RAY_JOB_KEYS
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["rayVersion"] == version("ray")
    assert set(cluster["headGroupSpec"]) == GROUP_KEYS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKER_KEYS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_all_nodes_of_the_job_run_one_image_with_what_they_ask_for_at_hand() -> None:
    found = list(containers(parsed("rayjob.yaml")))

    assert len({container["image"] for _, container in found}) == 1
    for _, container in found:
        assert container["resources"]["requests"] == container["resources"]["limits"]


def commands() -> list[str]:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    submitted = re.findall(r"ray job submit .* -- (mmldm .*)$", readme, re.MULTILINE)
    return [parsed("rayjob.yaml")["spec"]["entrypoint"], *submitted]


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_examples_are_commands(command: str) -> None:
    from pipeline.cli_settings import settings_from

    program, *rest = shlex.split(command)
    arguments = mmldm._parser().parse_args(rest)

    assert (program, arguments.engine) == ("mmldm", "ray")
    assert settings_from(arguments).run.device == "cuda"
