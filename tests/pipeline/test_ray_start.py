"""The code that workers on other nodes get."""

from __future__ import annotations

import json
from pathlib import Path

import pipeline
from pipeline.ray_start import runtime_env


def test_workers_get_the_packages_as_they_are_installed_here() -> None:
    found = runtime_env(None)

    root = Path(pipeline.__file__).parents[1]
    assert found["py_modules"] == [str(root / "latents"), str(root / "pipeline")]
    assert found["excludes"] == ["**/__pycache__"]


def test_a_job_that_brings_modules_of_its_own_brings_these() -> None:
    job = {"runtime_env": {"py_modules": ["gcs://package.zip"]}, "metadata": {}}

    assert runtime_env(json.dumps(job)) == {}


def test_what_a_job_sets_is_not_set_again() -> None:
    job = {"runtime_env": {"working_dir": "gcs://folder.zip", "excludes": ["data"]}}

    assert set(runtime_env(json.dumps(job))) == {"py_modules"}
    assert set(runtime_env("{}")) == {"py_modules", "excludes"}
