"""A run in a process of its own, whose decoder hangs at its second source.

Arguments: cache, KL-VAE, and how many seconds it may take to finish.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from latents.errors import InterruptedJobError
from pipeline import job
from pipeline.isolation import IsolatedDecoder
from tests.pipeline.small_jobs import SmallCache, SmallJob
from tests.pipeline.unruly_decode import TARGET


def main(cache: str, kl_vae: str, drain_seconds: str) -> int:
    """Exit status as the command's."""
    root = Path(__file__).resolve().parents[2]
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{root}"
    os.environ[TARGET] = "scenes:1:0:2 0 hang"
    job.IsolatedDecoder = partial(  # type: ignore[assignment, misc]
        IsolatedDecoder, decode_function="unruly_decode:misbehave_at_target"
    )
    overrides = (f"run.drain_seconds={drain_seconds}",)
    small = SmallJob(kl_vae=Path(kl_vae), levels=("clip",), overrides=overrides)
    try:
        SmallCache(Path(cache)).run(small, "scenes:0:1:2", "scenes:1:1:2")
    except InterruptedJobError as error:
        return 128 + error.signal_number
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
