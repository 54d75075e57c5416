"""Windows of files to go by: what a file gives is what an ingest of it would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.sampling.conditions import GivenWindow, GivingTask
from evaluation.sampling.file_windows import windows_of_files
from latents.cache.reader import CachedLevel
from latents.clip import loudness_dbfs
from latents.errors import ConfigError, ModelError, SourceError
from latents.posterior import posterior_mode
from latents.recipe import Recipe
from pipeline.sources import find_sources
from tests.evaluation.sampling.conftest import make_video, tone
from tests.evaluation.sampling.small_models import SmallModels

SHAPES = {"video": (1, 16, 2, 2), "audio": (1, 16, 8, 8)}


def window_of(models: SmallModels, source: Path | str, task: GivingTask) -> GivenWindow:
    (window,) = windows_of_files(
        find_sources([str(source)]),
        task,
        trained=models.trained,
        encoding=models.encoding,
        models=models.sources,
        device="cpu",
    )
    return window


def first_means(level: CachedLevel, window: GivenWindow, field: str) -> torch.Tensor:
    clip = level.clips.find(window.digest.removeprefix("file ").partition(":")[0])
    assert clip is not None
    return posterior_mode(torch.from_numpy(level.read(clip, field, 0, 1)))


@pytest.mark.parametrize("task", ["a2v", "v2a"])
@pytest.mark.parametrize("source", ["video", "late_video", "scenes:0:1:1"])
def test_a_source_gives_the_latents_that_an_ingest_of_it_gives(
    source: str,
    task: GivingTask,
    models: SmallModels,
    level: CachedLevel,
    request: pytest.FixtureRequest,
) -> None:
    is_scene = source.startswith("scenes:")

    window = window_of(models, source if is_scene else request.getfixturevalue(source), task)

    sense, other = ("audio", "video") if task == "a2v" else ("video", "audio")
    given = getattr(window.latents, sense)
    assert torch.equal(given, first_means(level, window, f"perceptual.{sense}"))
    assert torch.equal(getattr(window.latents, other), torch.zeros(SHAPES[other]))


def test_a_file_gives_its_own_pictures_and_sound(models: SmallModels, video: Path) -> None:
    window = window_of(models, video, "a2v")

    assert window.frames is not None
    assert window.sound is not None
    assert window.frames.shape == (4, 3, 32, 32)
    assert window.frames[:, :, 16, 4].mean(axis=0) == pytest.approx([220, 0, 0], abs=12)
    assert (window.sound.sample_rate, window.sound.waveform.shape) == (44100, (2, 17640))
    wanted = np.stack([tone(0.4, 440), tone(0.4, 660)])
    assert np.corrcoef(window.sound.waveform.ravel(), wanted.ravel())[0, 1] > 0.99


def test_a_window_begins_where_sound_does(models: SmallModels, late_video: Path) -> None:
    window = window_of(models, late_video, "a2v")

    assert window.frames is not None
    assert window.sound is not None
    # The stripe of frame 4 is 2 of 32 rows high, from row 8 on; before 0.4 s there was silence.
    assert window.frames[0, 1, :, 0].argmax() == pytest.approx(8, abs=1)
    assert loudness_dbfs(window.sound.waveform[:, :4410]) > -20


def test_silence_is_refused_for_a2v_and_its_pictures_are_taken_for_v2a(
    models: SmallModels, tmp_path: Path
) -> None:
    make_video(tmp_path / "silent.mp4", np.zeros((1, 44100), np.float32))
    make_video(tmp_path / "mute.mp4", None)

    with pytest.raises(ConfigError, match=r"silent.mp4: its sound has -120 dBFS"):
        window_of(models, tmp_path / "silent.mp4", "a2v")
    with pytest.raises(SourceError, match=r"mute.mp4: it holds no audio stream"):
        window_of(models, tmp_path / "mute.mp4", "a2v")
    silent, mute = (window_of(models, tmp_path / f"{n}.mp4", "v2a") for n in ("silent", "mute"))
    assert torch.equal(silent.latents.video, mute.latents.video)


def test_sound_that_begins_after_the_window_is_silence(models: SmallModels, tmp_path: Path) -> None:
    late = np.concatenate([np.zeros(22050, np.float32), tone(0.5, 440)])[None]
    make_video(tmp_path / "late.mp4", late)

    with pytest.raises(ConfigError, match="count as silence"):
        window_of(models, tmp_path / "late.mp4", "a2v")


def test_a_video_shorter_than_a_window_is_refused(models: SmallModels, tmp_path: Path) -> None:
    make_video(tmp_path / "short.mp4", tone(0.3, 440)[None], num_frames=3)

    with pytest.raises(SourceError, match=r"a window is 4 frames.*goes by its pictures"):
        window_of(models, tmp_path / "short.mp4", "v2a")


def test_a_file_that_is_no_video_is_refused(models: SmallModels, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")

    with pytest.raises(SourceError, match=r"text.mp4: "):
        window_of(models, tmp_path / "text.mp4", "v2a")


def test_latents_that_this_version_encodes_otherwise_are_refused(
    models: SmallModels, video: Path
) -> None:
    trained = models.trained
    recipes = dict(trained.trained_on.recipes)
    found = recipes["perceptual.audio"]
    recipes["perceptual.audio"] = Recipe(
        field=found.field,
        implementation=found.implementation + 1,
        specification=found.specification,
        parents=found.parents,
    )
    older = replace(trained, trained_on=replace(trained.trained_on, recipes=recipes))

    with pytest.raises(ModelError, match=r"perceptual\.audio implementation: 2 -> 1"):
        windows_of_files(
            find_sources([str(video)]),
            "a2v",
            trained=older,
            encoding=models.encoding,
            models=models.sources,
            device="cpu",
        )
