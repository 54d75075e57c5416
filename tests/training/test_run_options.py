"""A run that is interrupted says by what, and what is left of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from latents.errors import InterruptedJobError
from training.run_options import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_and_the_checkpoint_stays(
    number: signal.Signals, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.touch()
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(InterruptedJobError, match=number.name) as caught, interruptible(checkpoint):
        signal.raise_signal(number)

    assert caught.value.signal_number == number
    assert f"{checkpoint} stays, the last checkpoint" in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(InterruptedJobError, match="no checkpoint yet, so the same command begins"),
        interruptible(tmp_path / "checkpoint"),
    ):
        raise KeyboardInterrupt
