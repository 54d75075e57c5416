"""A cache made once by this version of the format stays readable; and its page tells the truth."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from latents.cache.inspect import inspect_cache
from latents.cache.layout import FORMAT_VERSION, CacheLayout, find_cache
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.rows import ROW_KINDS, ROW_TYPES
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.testing import fake_clips

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cache"
PAGE = (ROOT / "docs" / "cache-format.md").read_text(encoding="utf-8")


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    """A copy, since opening a cache may lock files beside it."""
    shutil.copytree(GOLDEN, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


def tensors_of(level: CachedLevel) -> dict[tuple[str, str], bytes]:
    return {
        (clip.clip, field): level.read(clip, field).tobytes()
        for clip in level
        for field in clip.rows
    }


def test_every_byte_of_the_golden_cache_verifies(layout: CacheLayout) -> None:
    assert verify_cache(layout) == []


@pytest.mark.parametrize(("ref", "num_clips"), [("current", 4), ("previous", 5)])
def test_each_ref_of_the_golden_cache_reads_what_was_stored(
    layout: CacheLayout, ref: str, num_clips: int
) -> None:
    level = open_cache(layout.url, level="kl", ref=ref)

    wanted = {
        (str(clip.key), field): np.ascontiguousarray(tensor).tobytes()
        for clip in fake_clips(5)[:num_clips]
        for field, tensor in clip.tensors.items()
    }
    assert tensors_of(level) == wanted


def test_the_golden_cache_keeps_its_content_digest(layout: CacheLayout) -> None:
    assert inspect_cache(layout).levels["kl"].content_digest == (
        "e64047b04a49ee9f9ec42a6f7862f04c429ea3978ef9bae32145a219701cdf7c"
    )


def test_every_kind_of_row_of_the_golden_cache_is_read(layout: CacheLayout) -> None:
    snapshot = load_snapshot(layout)
    clips = fake_clips(5)

    assert snapshot.annotations["label"].to_pylist() == ["rain"]
    assert [event["segment"] for event in snapshot.open_quarantine()] == [1]
    assert snapshot.tombstones["source"].to_pylist() == [clips[4].key.source_digest]
    assert snapshot.sources.num_rows == 5


def test_the_page_states_the_version_and_every_column() -> None:
    named = [f"`{column.name}`" for kind in ROW_KINDS for column in fields(ROW_TYPES[kind])]

    assert f"version {FORMAT_VERSION}." in PAGE
    assert [f"**{kind}**" for kind in ROW_KINDS if f"**{kind}**" not in PAGE] == []
    assert [name for name in named if name not in PAGE] == []
