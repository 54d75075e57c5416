"""``mmldm cache export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmldm
from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.pack import open_pack
from latents.testing import make_cache, perceptual_clips, perceptual_recipes


def run(*arguments: str | Path) -> int:
    return mmldm.main(["cache", "export", *map(str, arguments)])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> CacheLayout:
    root = tmp_path_factory.mktemp("cache")
    return make_cache(root, clips=perceptual_clips(3), recipes=perceptual_recipes())


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    return json.loads(told)


def test_a_pack_is_exported_and_told(
    layout: CacheLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.safetensors"

    assert run("--cache", layout.url, "--to", "pack", "--out", out, "--json") == 0

    pack = open_pack(out)
    assert as_json(capsys) == {
        "out": str(out),
        "commit": pack.commit,
        "num_clips": 3,
        "num_windows": 15,
        "num_bytes": out.stat().st_size,
        "levels": {"perceptual": pack.content_digest},
    }


@pytest.mark.parametrize("store", ["tar", "zarr"])
def test_a_cache_is_exported_and_told(
    store: str, layout: CacheLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("--cache", layout.url, "--to", store, "--out", out, "--json") == 0

    digest = inspect_cache(layout).levels["perceptual"].content_digest
    assert as_json(capsys) == {
        "out": str(out),
        "commit": 2,
        "num_clips": 3,
        "num_shards": 2,
        "num_copied": 2,
        "levels": {"perceptual": digest},
    }
    assert inspect_cache(find_cache(out)).levels == inspect_cache(layout).levels


def test_people_are_told_the_same(
    layout: CacheLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--cache", layout.url, "--to", "pack", "--out", tmp_path / "p.safetensors") == 0
    told = capsys.readouterr()
    assert "p.safetensors: 15 windows of 3 clips" in told.out
    assert told.err.startswith("exported 3/3 clips")

    for _ in range(2):
        assert run("--cache", layout.url, "--to", "zarr", "--out", tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "out: 3 clips in 2 shards; current names commit 2\nperceptual   content" in told.out
    assert "3 clips in 2 shards, 2 of them there before; current" in told.out
    assert told.err.startswith("exported 2/2 shards")


def test_what_cannot_be_exported_fails_in_one_line(
    layout: CacheLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[list[str], int, str]] = [
        (["--to", "pack", "--out", "p.pt"], 2, "p.pt is no name for a pack"),
        (["--to", "pack", "--out", "p.safetensors", "--level", "kl"], 1, "has no kl.video"),
        (["--to", "tar", "--out", "o", "--ref", "mine"], 1, "has no ref 'mine'"),
        (["--to", "tar", "--out", layout.url], 1, "holds a cache already"),
    ]
    for arguments, status, told in cases:
        assert run("--cache", layout.url, *arguments) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert told in lines[0]
