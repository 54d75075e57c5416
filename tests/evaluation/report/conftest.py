"""One small cache with models and samples, and one report of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from evaluation.report.write import ReportResult
from tests.evaluation.report.reported import Reported, make_reported, note
from tests.pipeline.small_jobs import DecodesInProcess

LOSSES = {
    "svg": {"video": 0.2, "audio": 0.3},
    "a2v": {"video": 0.182, "audio": 0.05},
    "v2a": {"video": 0.04, "audio": 0.31},
    "linear": {"video": 0.5, "audio": 0.25},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    result: ReportResult
    page: str


@pytest.fixture(scope="session", autouse=True)
def _decode_in_process() -> Iterator[None]:
    """Starting a child takes longer than what is decoded here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        yield


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory, small_kl_vae: Path) -> Reported:
    torch.set_num_threads(1)
    made = make_reported(tmp_path_factory.mktemp("reported"), small_kl_vae)
    train = {"step": 10, "epoch": 2.5, "video_loss": 0.4, "audio_loss": 0.6}
    note(made.models.dit, {"train": train, "validation": {"losses": LOSSES, "num_windows": 8}})
    return made


@pytest.fixture(scope="session")
def report(reported: Reported, tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("report") / "report.html"
    result = reported.report(out)
    return Report(result=result, page=out.read_text())
