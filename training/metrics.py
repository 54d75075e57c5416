"""What a training run says of itself as it goes: lines of JSON for curves, and its pace."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latents.durable import make_folder, reason, replace_file
from latents.errors import ModelError

NOTED_STEPS = 10
"""Steps between two lines."""


class MetricsFile:
    """A file with one line of JSON for each noted step.

    Each line is an object with the key ``train``, whose ``step`` says which step it is of. A run
    that was stopped and resumed has the same lines as one that never was.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, record: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            ModelError: It cannot be written.
        """
        try:
            make_folder(self._path.parent)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ModelError(f"{self._path} cannot be written ({reason(error)})") from error

    def forget_after(self, step: int) -> None:
        """Leaves out what was noted beyond the step that a run goes on from.

        Raises:
            ModelError: A line is none that was noted, or the file cannot be read or replaced.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            # Without its end it is the last line of a run that was killed before its checkpoint.
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["train"]["step"] <= step]
            replace_file(self._path, "".join(kept).encode())
        except FileNotFoundError:
            return
        except OSError as error:
            raise ModelError(
                f"{self._path} cannot be read or replaced ({reason(error)})"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self._path} holds a line that no run has noted ({error!r}); move the file away"
            ) from error


class StepRate:
    """Steps a second since a run began, or went on.

    Args:
        step: Steps done by then.
    """

    def __init__(self, step: int) -> None:
        self._first, self._started = step, time.monotonic()

    def at(self, step: int) -> float:
        """The mean rate, once this step is done."""
        return (step - self._first) / max(time.monotonic() - self._started, 1e-9)


def is_noted(step: int, *, last: int) -> bool:
    """Whether a step has a line: every so many, and the run's last."""
    return step == last or step % NOTED_STEPS == 0
