"""The one command, ``mmldm``. Nothing heavy is imported before a subcommand runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import evaluation.cli
import latents.cli
import pipeline.cache_cli
import pipeline.cli
import training.cli
from latents.errors import InterruptedJobError, JobError, LatentError

EXIT_INTERRUPTED = 128
"""Plus the signal's number, as shells do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0 done, 1 failed (or nothing became a row), 2 wrong use, 3 done with quarantined clips;
    130 and 143 where Ctrl-C or SIGTERM stopped it.
    """
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except InterruptedJobError as error:
        return _fail(error, EXIT_INTERRUPTED + error.signal_number)
    except JobError as error:
        return _fail(error, error.exit_code)
    except LatentError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        # Whoever read our output has read enough, as `head` does.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED + 2)
    return status


def _fail(message: object, status: int) -> int:
    sys.stderr.write(f"mmldm: {message}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmldm",
        description="Latent caches for multi-modal latent diffusion: sounding videos are encoded "
        "once, and models train from what was cached.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for package in (evaluation, pipeline, training):
        package.cli.add_commands(commands)
    cache_verbs = latents.cli.add_commands(commands)
    pipeline.cache_cli.add_cache_verbs(cache_verbs)
    evaluation.cli.add_cache_verbs(cache_verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
