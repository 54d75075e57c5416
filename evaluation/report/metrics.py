"""What training runs noted: the lines of their ``metrics.jsonl``, and what the last ones mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latents.durable import reason
from latents.errors import ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Losses on held-out windows, by case and then ``video`` or ``audio``."""

    losses: Mapping[str, Mapping[str, float]]
    num_windows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsLine:
    """One step."""

    step: int
    train: Mapping[str, float]
    """All numbers that were noted of the step itself."""
    held_out: HeldOut | None
    """Where this step was validated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer to a question of one modality, and the two losses that give it."""

    question: str
    modality: str
    """``video`` or ``audio``."""
    smaller: float
    """The loss that is to be the smaller one."""
    larger: float

    @property
    def is_met(self) -> bool:
        """Whether it is."""
        return self.smaller < self.larger

    @property
    def margin(self) -> float:
        """By which part of the other loss it is; below 0 where it is not."""
        return (self.larger - self.smaller) / self.larger if self.larger else 0.0


LEARNED = "Has it learned structure? svg below linear"
HELPED = "Is the condition used? given below svg"
RIGHT = "Is it the right one that helps? given below shuffled"
_QUESTIONS = (
    (LEARNED, "video", "svg", "linear"),
    (LEARNED, "audio", "svg", "linear"),
    (HELPED, "video", "a2v", "svg"),
    (HELPED, "audio", "v2a", "svg"),
    (RIGHT, "video", "a2v", "a2v shuffled"),
    (RIGHT, "audio", "v2a", "v2a shuffled"),
)
"""Question, modality, and the cases whose loss is to be the smaller and the larger one."""


def verdicts(held_out: HeldOut) -> tuple[Verdict, ...]:
    """What the losses say; questions whose cases are missing are left out."""
    found = []
    for question, modality, smaller, larger in _QUESTIONS:
        if smaller in held_out.losses and larger in held_out.losses:
            found.append(
                Verdict(
                    question=question,
                    modality=modality,
                    smaller=held_out.losses[smaller][modality],
                    larger=held_out.losses[larger][modality],
                )
            )
    return tuple(found)


def last_held_out(lines: Sequence[MetricsLine]) -> tuple[int, HeldOut] | None:
    """Step and losses of the last validation; None where there was none."""
    validated = [(line.step, line.held_out) for line in lines if line.held_out is not None]
    return validated[-1] if validated else None


def read_metrics(path: Path) -> tuple[MetricsLine, ...] | None:
    """All lines of a file of metrics, in order; None where there is no such file, or no line.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    lines = (_text(path) or "").splitlines()
    return tuple(_line(path, number, line) for number, line in enumerate(lines, 1)) or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found = reason(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path} cannot be read ({found})") from error


def _line(path: Path, number: int, line: str) -> MetricsLine:
    try:
        record = json.loads(line)
        return MetricsLine(
            step=int(record["train"]["step"]),
            train={name: float(value) for name, value in record["train"].items()},
            held_out=_held_out(record["validation"]) if "validation" in record else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}, line {number}, is no line of metrics ({error!r}); train again with --resume, "
            "or move the file away"
        ) from error


def _held_out(record: Mapping[str, Any]) -> HeldOut:
    losses = {
        str(case): {modality: float(both[modality]) for modality in ("video", "audio")}
        for case, both in record["losses"].items()
    }
    return HeldOut(losses=losses, num_windows=int(record["num_windows"]))


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours: a twentieth of all, those at the ends fewer."""
    reach = len(values) // 40
    means = []
    for index in range(len(values)):
        around = values[max(0, index - reach) : index + reach + 1]
        means.append(math.fsum(around) / len(around))
    return means
