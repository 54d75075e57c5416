"""A folder of samples is gone on with by the same run alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.sampling.record import RecordedCondition, claim
from latents.errors import ConfigError


def conditions(*digests: str) -> list[RecordedCondition]:
    return [RecordedCondition(name=f"{digest}.mp4", digest=digest) for digest in digests]


def test_a_folder_is_claimed_once_for_each_task_and_seed(tmp_path: Path) -> None:
    claim(tmp_path / "out", "svg_s0", made_by={"dit": "a"})
    claim(tmp_path / "out", "svg_s0", made_by={"dit": "a"})
    claim(tmp_path / "out", "svg_s1", made_by={"dit": "b"})

    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["svg_s0.json", "svg_s1.json"]


def test_samples_made_otherwise_are_not_gone_on_with(tmp_path: Path) -> None:
    claim(tmp_path, "svg_s0", made_by={"dit": "a", "eta": 0.0})

    with pytest.raises(ConfigError, match=r"dit was a, now it is b; num_steps was None"):
        claim(tmp_path, "svg_s0", made_by={"dit": "b", "eta": 0.0, "num_steps": 5})


def test_a_run_may_have_more_conditions_or_fewer_but_not_others(tmp_path: Path) -> None:
    claim(tmp_path, "a2v_s0", made_by={}, conditions=conditions("a", "b"))
    claim(tmp_path, "a2v_s0", made_by={}, conditions=conditions("a"))
    claim(tmp_path, "a2v_s0", made_by={}, conditions=conditions("a", "b", "c"))

    with pytest.raises(ConfigError, match=r"sample 2 of a2v_s0 went by c.mp4, .* go by d.mp4"):
        claim(tmp_path, "a2v_s0", made_by={}, conditions=conditions("a", "b", "d"))


def test_samples_without_a_record_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "svg_s0_00000.mp4").touch()

    with pytest.raises(ConfigError, match="nothing says how they were made"):
        claim(tmp_path, "svg_s0", made_by={})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_by": {}, "conditions": [1]}'])
def test_a_record_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "svg_s0.json").write_text(content)

    with pytest.raises(ConfigError, match="is no record of samples"):
        claim(tmp_path, "svg_s0", made_by={})
