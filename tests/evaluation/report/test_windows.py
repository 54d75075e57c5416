"""Windows through an autoencoder: what is measured, shown and refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.report.page_windows import windows_section
from evaluation.report.windows import WindowsContents, held_out_clips, windows_to_show
from latents.cache.splits import clips_of_split
from latents.errors import CacheError, ModelError
from latents.models.autoencoder_files import load_autoencoder
from latents.models.modal_encoder_files import BUNDLED_AUTOENCODER
from latents.posterior import posterior_mode
from pipeline.engine_local import LocalEngine
from pipeline.ingest import ingest
from pipeline.sources import source_of_uri
from tests.evaluation.report.conftest import Report
from tests.evaluation.report.reported import (
    HELD_OUT,
    Reported,
    contents,
    note,
    section,
    stills,
)
from tests.evaluation.sampling.small_models import make_autoencoder
from tests.pipeline.small_jobs import SmallCache
from training.reconstruction import (
    WindowError,
    latent_errors,
    measure_reconstruction,
    window_errors,
)
from training.window_latents import WindowLatents

TITLE = "Windows through the autoencoder"
MOVING = WindowError(video=0.3, mean_frame=0.4, audio=0.02)
STILL = WindowError(video=0.1, mean_frame=0.0, audio=0.04)


def windows_contents(*errors: WindowError, **changes: object) -> WindowsContents:
    plain = WindowsContents(
        autoencoder="A",
        split="validation",
        num_windows=len(errors),
        errors=errors,
        shown=(),
        metrics=None,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_page_has_the_figures_that_the_trainer_measures(
    reported: Reported, report: Report
) -> None:
    level = reported.level()
    windows = WindowLatents(level, held_out_clips(level, validation_share=0.1).measured)
    autoencoder = load_autoencoder(reported.models.sources.autoencoder)

    measured = measure_reconstruction(autoencoder, windows)

    found = report.result
    assert (found.num_windows, found.are_held_out) == (measured.num_windows, True) == (8, True)
    assert found.video_ratio == pytest.approx(measured.video_ratio, rel=1e-5)
    assert found.audio_error == pytest.approx(measured.audio_error, rel=1e-5)
    assert f"<b>{found.video_ratio:.3f}</b><span>pictures: " in section(report.page, TITLE)
    assert f"<b>{found.audio_error:.3f}</b><span>sound: " in section(report.page, TITLE)


def test_each_window_has_its_own_error(reported: Reported) -> None:
    level = reported.level()
    autoencoder = load_autoencoder(reported.models.sources.autoencoder)
    clip = level.clips[0]

    errors = window_errors(autoencoder, WindowLatents(level, [clip]))

    windows = WindowLatents(level, [clip])
    batch = windows.take([2])
    decoder = autoencoder.signal_decoder
    with torch.no_grad():
        given_back = decoder.decode_video(posterior_mode(autoencoder.video_encoder(batch.video)))
    wanted = decoder.whiten_video(given_back) - decoder.whiten_video(batch.video)
    assert len(errors) == windows.num_windows == 4
    assert errors[2].video == pytest.approx(wanted.square().mean().item(), rel=1e-4)


def test_held_out_windows_are_shown_beside_their_source(report: Report) -> None:
    shown = section(report.page, TITLE)

    assert tuple(sorted(re.findall(r"scenes:0:\d:1", shown))) == HELD_OUT
    # The third of a clip's windows of 4 frames, 2 apart, at 10 fps.
    assert shown.count("0.4 to 0.8 s") == 2
    assert (shown.count('data-side="source"'), shown.count('data-side="decoded"')) == (2, 2)
    assert shown.count('data-sound="source"') == shown.count('data-sound="decoded"') == 2


def test_a_strip_shows_the_kl_vae_the_mean_frame_and_the_autoencoder(
    reported: Reported, report: Report
) -> None:
    level, decoder = reported.level(), reported.models.decoder
    ((clip, window), _) = windows_to_show(
        held_out_clips(level, validation_share=0.1), reported.level("perceptual")
    )
    means = posterior_mode(
        torch.from_numpy(level.read(clip, "kl.video", 2 * window, 2 * window + 4))
    )
    perceptual = reported.level("perceptual")
    cached = perceptual.clips.find(clip.clip)
    assert cached is not None
    z_v = perceptual.read(cached, "perceptual.video", window, window + 1)

    strip = stills(contents(section(report.page, TITLE), "image/png")[2])

    assert strip.shape == (3, 4, 3, 32, 32)
    assert np.array_equal(strip[0], decoder.kl_frames(means))
    assert np.array_equal(strip[1], np.repeat(decoder.kl_frames(means.mean(0)[None]), 4, axis=0))
    assert np.array_equal(strip[2], decoder.frames(posterior_mode(torch.from_numpy(z_v))[0]))


def test_a_foreign_autoencoder_is_refused(reported: Reported, tmp_path: Path) -> None:
    foreign = make_autoencoder(tmp_path / "foreign", encoder_seed=1)

    with pytest.raises(ModelError, match="name the autoencoder of their cache"):
        reported.page(tmp_path / "report.html", autoencoder=str(foreign), dit=None)

    assert not (tmp_path / "report.html").exists()


def test_a_cache_without_perceptual_latents_says_what_to_do(
    reported: Reported, tmp_path: Path
) -> None:
    SmallCache(tmp_path / "cache").run(replace(reported.models.job, levels=("kl",)), "scenes:0:1:1")

    with pytest.raises(CacheError, match="--levels perceptual"):
        replace(reported, cache=tmp_path / "cache").report(tmp_path / "report.html")


@pytest.mark.parametrize("number", [0, 5])
def test_where_training_holds_nothing_out_its_windows_are_measured(
    reported: Reported, tmp_path: Path, number: int
) -> None:
    """Of scene 0 alone nothing is held out; of scene 5 alone nothing would be left to train on."""
    job, cache = reported.models.job, SmallCache(tmp_path)
    ingest(
        [source_of_uri(f"scenes:0:{number}:1")],
        layout=cache.layout,
        settings=job.settings,
        encoders=job.encoders,
        levels=("kl",),
        engine=LocalEngine(num_workers=1),
        device="cpu",
    )

    held_out = held_out_clips(cache.level("kl"), validation_share=0.1)

    assert (held_out.split, held_out.num_windows) == ("train", 4)


def test_the_page_says_where_nothing_is_held_out() -> None:
    page = windows_section(windows_contents(MOVING, split="train"))

    assert "No source of this cache is held out" in page
    assert "held-out windows measured" not in page


@pytest.mark.parametrize(
    ("video", "words"), [(0.27, "0.675: below 0.7"), (0.29, "0.725: not below 0.7")]
)
def test_the_ratio_is_judged_by_what_it_is(video: float, words: str) -> None:
    error = replace(MOVING, video=video)

    assert words in windows_section(windows_contents(error))


def test_a_window_in_which_nothing_moves_has_no_ratio() -> None:
    page = windows_section(windows_contents(MOVING, STILL))

    assert STILL.video_ratio is None
    assert "1 in which nothing moves are left out. 1 of 1 are below 1." in page
    # (0.3 + 0.1) / (0.4 + 0.0)
    assert "<b>1.000</b><span>pictures" in page


def test_the_error_of_a_still_window_is_that_of_its_latents(reported: Reported) -> None:
    decoder = load_autoencoder(reported.models.sources.autoencoder).signal_decoder
    frame = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    z_v, z_a = torch.zeros(1, 16, 2, 2), torch.zeros(1, 16, 8, 8)

    (error,) = latent_errors(
        decoder, z_v, z_a, video=frame.expand(1, 4, 4, 4, 4), audio=torch.zeros(1, 4, 32, 32)
    )

    assert error.video_ratio is None
    assert error.video > 0


def test_the_training_of_the_autoencoder_is_drawn_where_it_noted_it(
    reported: Reported, tmp_path: Path
) -> None:
    lines = [{"train": {"step": s, "video_error": 1 / s, "audio_error": 2 / s}} for s in (10, 20)]
    folder = make_autoencoder(tmp_path / "autoencoder")
    note(folder, *lines)

    page = reported.page(tmp_path / "report.html", autoencoder=str(folder), dit=None, samples=())

    drawn = section(page, TITLE)
    assert "Training of the autoencoder" in drawn
    assert "pictures: 0.1 at 10" in drawn
    assert "sound: 0.1 at 20" in drawn
    assert "<h2>Samples" not in page
    assert "<h2>The diffusion" not in page


def test_as_many_sources_are_held_out_as_in_training(reported: Reported) -> None:
    level = reported.level("kl")

    few, many = (held_out_clips(level, validation_share=share) for share in (0.1, 0.6))

    held_out = clips_of_split(level, "validation", validation_share=0.6)
    assert many.num_windows == held_out.num_windows > few.num_windows


def test_the_page_has_what_the_bundled_autoencoder_was_measured_to_do() -> None:
    record = json.loads((BUNDLED_AUTOENCODER / "measured.json").read_text())["held_out"]

    page = windows_section(windows_contents(MOVING))

    assert f"over {record['num_windows']} windows of synthetic scenes" in page
    assert f"is {record['video_ratio']:.3f}." in page
