"""A small demo in a process that is killed when it has made so many files durable."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from latents.recipe import sha256_hex
from pipeline.cli_settings import prepare_torch
from tests.evaluation.demo.small_demo import small_demo, small_plan


def main(out: Path, kl_vae: Path, num_fsyncs: int) -> None:
    """Runs it; writes digests of what it ended with to standard output."""
    real_fsync, left = os.fsync, num_fsyncs

    def fsync(descriptor: int) -> None:
        nonlocal left
        real_fsync(descriptor)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    plan = small_plan(kl_vae)
    prepare_torch(plan.ingest)  # as the command does
    result = small_demo(out, plan, [])
    made = [path for path in sorted(result.models.root.rglob("*")) if path.is_file()]
    # A file that was being written aside when the process died stays beside the others.
    made = [path for path in made if not path.name.startswith(".partial-")]
    digests = {str(path.relative_to(out)): sha256_hex(path.read_bytes()) for path in made}
    digests |= {"kl": result.kl_digest, "perceptual": result.perceptual_digest}
    sys.stdout.write(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
