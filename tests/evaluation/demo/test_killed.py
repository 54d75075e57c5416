from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_NEVER = 1_000_000
_MOST_RUNS = 40


def run(out: Path, kl_vae: Path, *, num_fsyncs: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.evaluation.demo.killed_demo"]
    arguments = [str(out), str(kl_vae), str(num_fsyncs)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    small_kl_vae: Path, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", small_kl_vae, num_fsyncs=_NEVER)
    assert whole.returncode == 0, whole.stderr

    num_killed = 0
    for _ in range(_MOST_RUNS):
        taken_up = run(tmp_path / "killed", small_kl_vae, num_fsyncs=13)
        if taken_up.returncode == 0:
            break
        assert taken_up.returncode == -signal.SIGKILL, taken_up.stderr
        num_killed += 1

    assert num_killed >= 3
    assert json.loads(taken_up.stdout) == json.loads(whole.stdout)
