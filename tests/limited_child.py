"""Trials of native parsers in a process of little memory and time, which they may take down."""

from __future__ import annotations

import faulthandler
import json
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_TRIAL = 20


def run_trials(trial: str, *, seeds: range, memory_bytes: int = 4 * 2**30) -> Counter[str]:
    """What became of a trial with each seed, counted.

    Args:
        trial: ``module:function``, from a seed to a word for what came of it.
        seeds: Consecutive.
        memory_bytes: Address space of the process.

    Raises:
        AssertionError: A trial raised, hung, or took the process down; with its seed.
    """
    arguments = [trial, str(seeds.start), str(seeds.stop), str(memory_bytes)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.limited_child", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        last = f"{trial} with seed {lines[-1] if lines else 'none'}"
        raise AssertionError(f"{last}: status {done.returncode}\n{done.stderr[-4000:]}")
    return Counter(json.loads(lines[-1]))


def main(name: str, first: int, stop: int, memory_bytes: int) -> None:
    """Carries out trials; the last line of its output is either the outcome or the fatal seed."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    faulthandler.enable()
    module, function = name.split(":")
    trial: Callable[[int], str] = getattr(import_module(module), function)
    outcomes: Counter[str] = Counter()
    for seed in range(first, stop):
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        signal.alarm(SECONDS_PER_TRIAL)
        outcomes[trial(seed)] += 1
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
