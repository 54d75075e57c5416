"""What the training commands share."""

from __future__ import annotations

import pytest

import mmldm
from training.run_options import sections


def test_a_key_without_its_table_is_one_of_the_optimisation() -> None:
    assert sections(["steps=5", "model.depth=2", "out=a.b"]) == [
        "optimisation.steps=5",
        "model.depth=2",
        "optimisation.out=a.b",
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", "0"), "--threads is 0; it must be >= 1"),
        (("--device", "cuda:7"), "--device is cuda:7, but torch finds no GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    option: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert mmldm.main(["train", "dit", "--cache", "c", "--out", "d", *option]) == 2
    assert message in capsys.readouterr().err
