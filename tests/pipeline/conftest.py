"""Small caches of scenes, to be refreshed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Not at the top: most tests here need none of it.
if TYPE_CHECKING:
    from tests.pipeline.small_jobs import SmallCache, SmallJob


@pytest.fixture
def decode_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are decoded without a child process."""
    from tests.pipeline.small_jobs import DecodesInProcess

    monkeypatch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, small_kl_vae: Path) -> SmallJob:
    """All levels, with small encoders."""
    from tests.pipeline.small_jobs import ALL_LEVELS, SmallJob, make_autoencoder

    folder = tmp_path_factory.mktemp("models") / "autoencoder"
    return SmallJob(kl_vae=small_kl_vae, autoencoder=make_autoencoder(folder), levels=ALL_LEVELS)


@pytest.fixture(scope="session")
def update(tmp_path_factory: pytest.TempPathFactory, job: SmallJob) -> SmallJob:
    """The same with other modal encoders, and without the clip level."""
    from tests.pipeline.small_jobs import BOTH, make_autoencoder

    folder = tmp_path_factory.mktemp("models") / "update"
    updated = make_autoencoder(folder, video_seed=1, audio_seed=1)
    return replace(job, autoencoder=updated, levels=BOTH)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, job: SmallJob) -> Path:
    """A cache of scenes at all levels; to be copied."""
    from tests.pipeline.small_jobs import SCENES, DecodesInProcess, SmallCache

    root = tmp_path_factory.mktemp("ingested") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        SmallCache(root).ingest(job, SCENES)
    return root


@pytest.fixture
def cache(ingested: Path, tmp_path: Path) -> SmallCache:
    """Scenes at all levels, in a cache of the test's own."""
    from tests.pipeline.small_jobs import SmallCache

    return SmallCache(shutil.copytree(ingested, tmp_path / "cache"))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A file of 2 s."""
    from pipeline.synth import synthesise

    folder = tmp_path / "videos"
    synthesise(folder, num_clips=1, seconds=2, seed=1, fps=10, height=64, width=64)
    (file,) = folder.glob("*.mp4")
    return file
