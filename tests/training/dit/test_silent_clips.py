"""Clips that cannot be heard are left out of a run where its settings say so, and are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from latents.cache.pack_writer import write_pack
from latents.cache.reader import open_cache
from latents.cache.source_split import SPLITS
from latents.errors import CacheError, ConfigError
from latents.testing import FakeClip, make_cache, perceptual_clips, perceptual_recipes
from tests.training.dit.small_settings import small_settings
from training.dit.files import load_dit
from training.dit.run import train_dit
from training.dit.source import TrainingSource, open_source, pair_whitening

CLIPS = perceptual_clips(8)
SILENT = CLIPS[::3]


def cache_of(root: Path, clips: Sequence[FakeClip], *, silent: Sequence[FakeClip] = ()) -> str:
    """Clips of which some are as loud as a missing stream."""
    said = [replace(one, loudness_dbfs=-120.0 if one in silent else -20.0) for one in clips]
    return make_cache(root, clips=said, recipes=perceptual_recipes()).url


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cache_of(tmp_path_factory.mktemp("cache"), CLIPS, silent=SILENT)


@pytest.fixture(scope="module")
def pack(cache: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pack") / "p.safetensors"
    return str(write_pack(open_cache(cache, level="perceptual"), path, ref="current").path)


def audible_source(cache: str) -> TrainingSource:
    return open_source(cache, ref="current", validation_share=0.3, audible_from_dbfs=-80)


def run(cache: str, out: Path, *, resume: bool = False, **data: Any) -> None:
    settings = small_settings(data=data)
    train_dit(
        cache,
        settings,
        out=out,
        resume=resume,
        device="cpu",
        on_progress=lambda progress: None,
    )


@pytest.mark.parametrize("kind", ["cache", "pack"])
def test_silent_clips_are_left_out_as_if_they_were_not_there(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    heard = [one for one in CLIPS if one not in SILENT]
    without = open_source(cache_of(tmp_path, heard), ref="current", validation_share=0.3)

    source = audible_source(request.getfixturevalue(kind))

    for split in SPLITS:
        assert source.sources(split) == without.sources(split)
        assert source.num_windows(split) == without.num_windows(split)
    assert pair_whitening(source) == pair_whitening(without)
    assert [one.num_silent for one in source.trained_on.caches] == [3]


def test_a_pack_and_its_cache_leave_out_the_same(cache: str, pack: str, tmp_path: Path) -> None:
    outs = (tmp_path / "cache", tmp_path / "pack")
    for latents, out in zip((cache, pack), outs, strict=True):
        run(latents, out, silent="skip")

    weights, others = (load_file(out / "model.safetensors") for out in outs)
    assert {name: one.tobytes() for name, one in weights.items()} == {
        name: one.tobytes() for name, one in others.items()
    }
    assert [load_dit(out).trained_on.caches[0].num_silent for out in outs] == [3, 3]


def test_a_run_does_not_go_on_with_other_clips(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.silent"):
        run(cache, tmp_path / "run", resume=True, silent="skip")


def test_a_cache_of_silence_alone_is_refused(tmp_path: Path) -> None:
    silence = cache_of(tmp_path / "cache", CLIPS, silent=CLIPS)
    told = (
        r"no window to train on: its 8 clips are silent \(8\) or held out \(0\).*data.silent=keep"
    )
    with pytest.raises(CacheError, match=told):
        run(silence, tmp_path / "run", silent="skip")
