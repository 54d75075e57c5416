"""The packages have generic names; these tests see to it that they are ours."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("latents", "pipeline", "training", "evaluation")


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_package_answers_to_the_name(name: str, tmp_path: Path) -> None:
    # A dependency that ships a top-level `training` would be imported instead, or be merged with.
    code = f"import {name}; print({name}.__file__)"
    found = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == ROOT / name / "__init__.py"


def test_nothing_heavy_is_imported_before_a_subcommand_runs(tmp_path: Path) -> None:
    code = "import sys, mmldm; print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    found = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "ray", "av", "decord", "diffusers", "librosa", "pyarrow", "numpy"}
    assert heavy.isdisjoint(found.stdout.split())


def test_no_package_below_tests_shadows_ours() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_optional_dependency_group_is_part_of_the_locked_set_up() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    named = [
        *project["dependencies"],
        *(d for g in project["optional-dependencies"].values() for d in g),
    ]
    names = {requirement.partition(">")[0].partition("[")[0].lower() for requirement in named}
    assert names - {"mmldm"} <= locked
