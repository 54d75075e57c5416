"""Joining a Ray cluster, or starting Ray on this machine, and the code that its workers run."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import ray

import latents
import pipeline
from latents.errors import ConfigError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of what ``ray job submit`` starts."""


def start_ray(*, address: str | None, num_workers: int) -> None:
    """Joins the cluster at an address, or starts Ray here; does nothing where that is done.

    Before signal handlers are set: Ray sets one for SIGTERM.

    Args:
        address: Of a cluster; None to start Ray on this machine.
        num_workers: Cores that a Ray of its own is to use; 0 for all.

    Raises:
        ConfigError: No cluster answers there.
    """
    if ray.is_initialized():
        return
    if address is None:
        # Ray's metrics and dashboard are of no use to a run of minutes on one machine.
        ray.init(
            address="local",
            num_cpus=num_workers or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=runtime_env(os.environ.get(_JOB_CONFIG)),
        )
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({error}); give another "
            "--ray-address, or none to start Ray on this machine"
        ) from error


def runtime_env(job_config: str | None) -> dict[str, Any]:
    """What workers on other nodes need of this one: the packages as they are installed here.

    By Ray's ``py_modules`` and not its ``working_dir``, which would have the workers run in another
    folder than this process and the job.

    Args:
        job_config: What Ray says of the job that this process is, as JSON. A job that brings
            modules of its own is taken to bring these.
    """
    given = json.loads(job_config).get("runtime_env") or {} if job_config else {}
    if "py_modules" in given:
        return {}
    packages = [str(_folder(package)) for package in (latents, pipeline)]
    # Ray refuses what both the job and its driver set.
    excludes = {} if "excludes" in given else {"excludes": ["**/__pycache__"]}
    return {"py_modules": packages, **excludes}


def _folder(package: Any) -> Path:
    return Path(package.__file__).resolve().parent
