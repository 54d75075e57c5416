"""Lines for curves: one for each noted step, cut back to where a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latents.errors import ModelError
from training.metrics import MetricsFile, StepRate, is_noted


def noted(path: Path, *steps: int) -> MetricsFile:
    metrics = MetricsFile(path)
    for step in steps:
        metrics.note({"train": {"step": step, "loss": 1 / step}})
    return metrics


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["train"]["step"] for line in path.read_text().splitlines()]


def test_each_note_is_a_line(tmp_path: Path) -> None:
    noted(tmp_path / "run" / "metrics.jsonl", 10, 20)

    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert lines == (
        '{"train": {"step": 10, "loss": 0.1}}\n{"train": {"step": 20, "loss": 0.05}}\n'
    )


def test_what_comes_after_a_step_is_forgotten(tmp_path: Path) -> None:
    metrics = noted(tmp_path / "m", 10, 20, 30)

    metrics.forget_after(20)

    assert steps_of(tmp_path / "m") == [10, 20]


def test_where_nothing_was_noted_nothing_is_forgotten(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "m").forget_after(0)

    assert list(tmp_path.iterdir()) == []


def test_half_a_line_of_a_killed_run_is_forgotten(tmp_path: Path) -> None:
    metrics = noted(tmp_path / "m", 10, 20)
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[:-5])

    metrics.forget_after(20)
    metrics.note({"train": {"step": 20, "loss": 0.05}})

    assert (tmp_path / "m").read_bytes() == whole


@pytest.mark.parametrize("line", ["[1]", '{"step": 1}', "not JSON", '{"train": {"step": "1"}}'])
def test_a_line_that_no_run_noted_is_told_and_kept(line: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(line + "\n")

    with pytest.raises(ModelError, match="m holds a line that no run has noted"):
        MetricsFile(tmp_path / "m").forget_after(1)
    assert (tmp_path / "m").read_text() == line + "\n"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()

    with pytest.raises(ModelError, match="m cannot be written"):
        noted(tmp_path / "m", 10)
    with pytest.raises(ModelError, match="m cannot be read or replaced"):
        MetricsFile(tmp_path / "m").forget_after(1)


def test_every_tenth_step_and_the_last_are_noted() -> None:
    assert [step for step in range(1, 26) if is_noted(step, last=25)] == [10, 20, 25]


def test_the_rate_counts_the_steps_since_a_run_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 104.0, 110.0])
    monkeypatch.setattr("training.metrics.time.monotonic", lambda: next(times))
    rate = StepRate(1000)

    assert (rate.at(1002), rate.at(1050)) == (0.5, 5.0)
