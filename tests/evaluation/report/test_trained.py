"""A report with models as a whole: its order, its fingerprint, and the command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmldm
from evaluation.report.fingerprint import report_fingerprint
from evaluation.report.trained import TrainedModels
from evaluation.report.write import is_report_of
from latents.cache.inspect import inspect_cache
from latents.cache.layout import find_cache
from latents.models.autoencoder_files import load_autoencoder, save_autoencoder
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import save_autoencoder as save_kl_vae
from tests.evaluation.report.conftest import Report
from tests.evaluation.report.reported import Reported, note


@pytest.fixture
def copied(reported: Reported, tmp_path: Path) -> TrainedModels:
    """Copies of the models and samples, to be changed."""
    shown = reported.shown
    for name, source in (("autoencoder", shown.autoencoder), ("dit", str(shown.dit))):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(reported.samples, tmp_path / "samples")
    return TrainedModels(
        autoencoder=str(tmp_path / "autoencoder"),
        dit=str(tmp_path / "dit"),
        samples=(tmp_path / "samples",),
    )


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(report.page)
    return path


def is_current(reported: Reported, page: Path, models: TrainedModels | None) -> bool:
    return is_report_of(
        page, reported.cache, num_clips=1, kl_vae=str(reported.kl_vae), models=models
    )


def test_sections_are_in_their_order(report: Report) -> None:
    assert re.findall(r"<h2>([^<]+)</h2>", report.page) == [
        "Clips and what their latents hold",
        "Windows through the autoencoder",
        "The diffusion transformer",
        "Samples",
        "What is in the cache",
        "Quarantine",
    ]


def test_the_page_refers_to_nothing_outside_itself(report: Report) -> None:
    text = re.sub(r"base64,[^\"]+", "", report.page)

    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", text)
    assert set(re.findall(r'\b(?:src|href|poster)="([^":;]*)', text)) == {"data"}


def test_equal_models_give_equal_pages(reported: Reported, report: Report, tmp_path: Path) -> None:
    assert reported.page(tmp_path / "again.html") == report.page


def test_a_report_knows_its_models(reported: Reported, page: Path, copied: TrainedModels) -> None:
    # Where equal files lie makes no difference.
    assert is_current(reported, page, reported.shown)
    assert is_current(reported, page, copied)
    assert not is_current(reported, page, None)
    assert not is_current(reported, page, replace(copied, dit=None))
    assert not is_current(reported, page, replace(copied, samples=()))


def test_another_sample_makes_it_another_report(
    reported: Reported, page: Path, copied: TrainedModels
) -> None:
    (folder,) = copied.samples
    shutil.copy(folder / "svg_s0_00000.mp4", folder / "svg_s0_00001.mp4")

    assert not is_current(reported, page, copied)


def test_a_sample_of_another_size_makes_it_another_report(
    reported: Reported, page: Path, copied: TrainedModels
) -> None:
    with (copied.samples[0] / "v2a_s0_00000.mp4").open("ab") as file:
        file.write(b"more")

    assert not is_current(reported, page, copied)


def test_another_record_of_samples_makes_it_another_report(
    reported: Reported, page: Path, copied: TrainedModels
) -> None:
    record = copied.samples[0] / "svg_s0.json"
    record.write_text(record.read_text().replace('"num_steps": 3', '"num_steps": 4'))

    assert not is_current(reported, page, copied)


def test_more_metrics_make_it_another_report(
    reported: Reported, page: Path, copied: TrainedModels
) -> None:
    note(Path(str(copied.dit)), {"train": {"step": 10}})

    assert not is_current(reported, page, copied)


def test_a_fine_tuned_decoder_is_accepted_and_makes_it_another_report(
    reported: Reported, report: Report, page: Path, copied: TrainedModels, tmp_path: Path
) -> None:
    autoencoder = load_autoencoder(copied.autoencoder)
    with torch.no_grad():
        autoencoder.signal_decoder.video_head.bias.add_(1)
    save_autoencoder(Path(copied.autoencoder), autoencoder)

    assert not is_current(reported, page, copied)
    tuned = reported.report(tmp_path / "tuned.html", replace(copied, dit=None, samples=()))
    assert tuned.video_ratio != report.result.video_ratio
    assert tuned.audio_error == report.result.audio_error


def test_another_decoder_of_the_kl_vae_makes_it_another_report(
    reported: Reported, page: Path, tmp_path: Path
) -> None:
    kl_vae = load_kl_vae(str(reported.kl_vae))
    with torch.no_grad():
        kl_vae.autoencoder.decoder.conv_out.bias += 0.2
    save_kl_vae(kl_vae.autoencoder, tmp_path / "tuned")

    assert not is_current(replace(reported, kl_vae=tmp_path / "tuned"), page, reported.shown)


def test_other_perceptual_latents_make_it_another_report(reported: Reported) -> None:
    summary = inspect_cache(find_cache(reported.cache))
    changed = replace(summary.levels["perceptual"], content_digest="0" * 64)
    other = replace(summary, levels=summary.levels | {"perceptual": changed})
    how = {"kl_vae": str(reported.kl_vae), "models": reported.shown}

    assert report_fingerprint(summary, 1, **how) != report_fingerprint(other, 1, **how)  # type: ignore[arg-type]


def test_without_models_nothing_of_them_is_in_the_page(
    reported: Reported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    arguments = ["--cache", str(reported.cache), "--out", str(out), "--num-clips", "1", "--json"]

    assert mmldm.main(["report", *arguments, "--kl-vae", str(reported.kl_vae)]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert {name for name, value in printed.items() if value is None} == {
        "num_windows",
        "are_held_out",
        "video_ratio",
        "audio_error",
        "dit_losses",
        "num_samples",
    }
    assert not re.search("autoencoder|--video|strip", re.sub(r"base64,[^\"]+", "", out.read_text()))


def test_the_command_shows_models(
    reported: Reported, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, out = reported.shown, tmp_path / "report.html"
    arguments = ["--cache", str(reported.cache), "--out", str(out), "--num-clips", "1"]
    models = ["--autoencoder", shown.autoencoder, "--dit", str(shown.dit)]

    samples = ["--samples", str(reported.samples), "--kl-vae", str(reported.kl_vae)]

    status = mmldm.main(["report", *arguments, *models, *samples])

    assert status == 0
    assert out.read_text() == report.page
    assert (
        f"8 held-out windows: error {report.result.video_ratio:.3f} of the mean frame's, sound "
        f"{report.result.audio_error:.3f}; 3 samples\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize("option", ["--dit", "--samples"])
def test_a_dit_or_samples_need_the_autoencoder(
    reported: Reported, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"

    status = mmldm.main(["report", "--cache", str(reported.cache), "--out", str(out), option, "x"])

    assert status != 0
    assert f"{option} needs the autoencoder" in capsys.readouterr().err
    assert not out.exists()
