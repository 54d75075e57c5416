"""``mmldm train autoencoder``, from an ingest to a perceptual level."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import mmldm
from latents.cache.reader import open_cache
from tests.pipeline.small_jobs import DecodesInProcess

SMALL = ("--set", "clip.size=32", "--set", "window.stride=8", "--workers", "1")


def test_what_was_trained_makes_the_perceptual_level(
    tmp_path: Path,
    small_kl_vae: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
    cache, out = str(tmp_path / "cache"), tmp_path / "autoencoder"
    ingest = ["ingest", "scenes:0:6:3", "--cache", cache, "--kl-vae", str(small_kl_vae), *SMALL]
    assert mmldm.main(ingest) == 0
    train = ["train", "autoencoder", "--cache", cache, "--out", str(out), "--device", "cpu"]
    few = ["--set", "steps=4", "--set", "warmup_steps=0", "--set", "decay_steps=0"]
    more = ["--set", "data.validation_share=0.5", "--set", "batch_size=2"]
    capsys.readouterr()

    assert mmldm.main([*train, *few, *more, "--json"]) == 0

    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["held_out"]["video_ratio"] > 0
    assert re.search(r"step 4/4 .* [1-9][0-9.]* steps/s  0 s left", told.err)
    assert mmldm.main(["refresh", "--cache", cache, "--autoencoder", str(out)]) == 0
    level = open_cache(cache, level="perceptual")
    assert len(level) == 6
    assert level.clips[0].rows["perceptual.video"].shape[1:] == [32, 2, 2]


def test_a_run_that_is_there_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latents.testing import make_cache

    cache = make_cache(tmp_path / "cache").url
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.safetensors").write_bytes(b"a run")
    arguments = ["train", "autoencoder", "--cache", cache, "--out", str(tmp_path / "out")]

    assert mmldm.main(arguments) == 2
    assert "holds a run already; go on with it by --resume" in capsys.readouterr().err
