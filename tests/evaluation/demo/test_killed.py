from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_NEVER = 1_000_000
_MOST_RUNS = 30


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
    out = tmp_path / "demo"  # models say where their cache was
    whole = run(out, small_kl_vae, num_fsyncs=_NEVER)
    assert whole.returncode == 0, whole.stderr
    out.rename(tmp_path / "whole")

    num_killed = 0
    for number in range(1, _MOST_RUNS):
        # Longer each time: what is done again at every start may be more than the last got to.
        taken_up = run(out, small_kl_vae, num_fsyncs=17 * number)
        if taken_up.returncode == 0:
            break
        assert taken_up.returncode == -signal.SIGKILL, taken_up.stderr
        num_killed += 1

    assert num_killed >= 3
    assert json.loads(taken_up.stdout) == json.loads(whole.stdout)
