"""Options that the training commands share, and what they mean."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from latents.devices import device_named
from latents.errors import ConfigError, InterruptedJobError


def add_run_options(parser: argparse.ArgumentParser, *, letter: str, presets: str) -> None:
    """How a run starts from a preset, and goes on.

    Args:
        parser: Of the command.
        letter: What the help calls the trained folder.
        presets: The help of ``--preset``.
    """
    parser.add_argument("--init", metavar=letter, help="start from this one's weights, not afresh")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--preset", action="append", default=[], metavar="P", help=presets)
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where a run computes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of the CPU; default 1. Another number gives other last bits; a run needs one number "
        "throughout to be resumed exactly",
    )


def sections(overrides: list[str]) -> list[str]:
    """``steps=200`` stands for ``optimisation.steps=200``."""
    return [one if "." in one.partition("=")[0] else f"optimisation.{one}" for one in overrides]


def prepare_device(arguments: argparse.Namespace) -> str:
    """Sets the number of threads, and gives the device that was named or that ``auto`` stands for.

    Raises:
        ConfigError: There is no such device here, or no such number of threads.
    """
    import torch  # not at the top: a command's help needs none

    if arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}; it must be >= 1")
    torch.set_num_threads(arguments.threads)
    return device_named(arguments.device, option="--device")


@contextmanager
def interruptible(checkpoint: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run with a word on how it goes on from its checkpoint."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        number = received[0] if received else signal.SIGINT
        raise InterruptedJobError(
            number, f"interrupted by {signal.Signals(number).name}; {_left_of_run(checkpoint)}"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _left_of_run(checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "there was no checkpoint yet, so the same command begins anew"
    return (
        f"{checkpoint} stays, the last checkpoint. Run the same command with --resume and it goes "
        "on from there"
    )
