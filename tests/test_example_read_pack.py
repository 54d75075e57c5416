"""The example that reads a pack with numpy alone reads what was packed."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from latents.cache.pack import open_pack
from latents.cache.pack_writer import write_pack
from latents.cache.reader import open_cache
from latents.testing import make_cache, perceptual_clips, perceptual_recipes

READ_PACK = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "read_pack.py"))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    make_cache(tmp_path / "cache", clips=perceptual_clips(3), recipes=perceptual_recipes())
    level = open_cache(tmp_path / "cache", level="perceptual")
    return write_pack(level, tmp_path / "p.safetensors", ref="current").path


def test_the_tensors_of_a_pack_are_read(pack: Path) -> None:
    about, tensors = READ_PACK["read_pack"](pack)

    opened = open_pack(pack)
    assert (about["commit"], about["content_digest"]) == (opened.commit, opened.content_digest)
    for field, windows in opened.take(np.arange(15)).items():
        np.testing.assert_array_equal(tensors[field], windows, strict=True)


def test_all_clips_of_a_pack_are_shown(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    READ_PACK["main"](str(pack))

    opened = open_pack(pack)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"perceptual of commit 1, content {opened.content_digest[:16]}"
    assert lines[1::3] == [f"{key}  5 windows" for key in opened.clip_keys()]
    mean = opened.take(np.array([5]))["perceptual.video"][0, :2].mean(dtype=np.float64)
    assert f"  perceptual.video  (4, 4, 4)  mean {mean:.4f}" == lines[6]
