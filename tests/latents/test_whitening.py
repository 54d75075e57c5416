"""Mean and spread per channel from the log's rows, and whitening by them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latents.cache.pack import open_pack
from latents.cache.pack_writer import write_pack
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.rows import LatentRow
from latents.channel_sums import ClipChannelSums
from latents.posterior import posterior_mode
from latents.store.protocol import StoredTensor
from latents.testing import (
    FakeClip,
    fake_clips,
    fake_latent_row,
    fake_recipes,
    make_cache,
    perceptual_clips,
    perceptual_recipes,
)
from latents.whitening import Whitening, mode_sums, whitening_of

RECIPE = fake_recipes()["kl.video"]


def _row(clip: FakeClip) -> LatentRow:
    stored = StoredTensor(
        shard="", offset=0, dtype="float16", shape=(8, 4, 2, 2), digest="", crc32c=()
    )
    return fake_latent_row(clip, "kl.video", RECIPE, stored)


def _sums(
    clip: str, mean_sum: list[float], square_sum: list[float], count: int = 1
) -> ClipChannelSums:
    return ClipChannelSums(
        clip=clip, channel_count=count, mean_sum=tuple(mean_sum), square_sum=tuple(square_sum)
    )


def test_mean_and_variance_are_those_of_draws_from_all_clips() -> None:
    clips = fake_clips(20)
    tensors = np.concatenate([clip.tensors["kl.video"] for clip in clips]).astype(np.float64)
    mean, logvar = np.split(tensors, 2, axis=1)

    whitening = whitening_of([_row(clip) for clip in clips])

    total = mean.var((0, 2, 3)) + np.exp(logvar).mean((0, 2, 3))
    # The rows' own sums are rounded, by 1e-16 of each.
    np.testing.assert_allclose(whitening.mean, mean.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(whitening.std, np.sqrt(total), rtol=1e-12)
    assert whitening.spread == "draws"


def test_the_spread_of_modes_is_that_of_the_means_alone() -> None:
    clips = fake_clips(20)
    moments = [torch.from_numpy(clip.tensors["kl.video"]) for clip in clips]
    means = posterior_mode(torch.cat(moments)).double()

    sums = [mode_sums(str(c.key), m) for c, m in zip(clips, moments, strict=True)]
    modes = whitening_of(sums, spread="modes")

    std = means.var((0, 2, 3), correction=0).sqrt()
    np.testing.assert_allclose(modes.std, std, rtol=1e-12)
    assert modes.mean == whitening_of([_row(clip) for clip in clips]).mean
    assert modes.spread == "modes"


@given(st.permutations(range(30)))
def test_the_order_of_rows_changes_no_bit(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    # Of sizes so different that adding them up in another order would round otherwise.
    means = rng.normal(size=(30, 3)) * 10.0 ** rng.integers(-8, 8, size=(30, 1))
    rows = [_sums(str(i), m.tolist(), (m**2 + 1).tolist()) for i, m in enumerate(means)]

    assert whitening_of([rows[index] for index in order]) == whitening_of(rows)


CLIPS = perceptual_clips(12)


def cache_of(root: Path, clips: Sequence[FakeClip], **how: Any) -> CachedLevel:
    layout = make_cache(root, clips=clips, recipes=perceptual_recipes(), **how)
    return open_cache(layout.url, level="perceptual")


def whitenings_of(*levels: CachedLevel) -> dict[str, Whitening]:
    """Of both fields, over the rows of one cache after the other."""
    return {
        field: whitening_of(clip.rows[field] for clip in chain(*levels))
        for field in perceptual_recipes()
    }


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> CachedLevel:
    """Twelve clips, two in each commit and shard."""
    return cache_of(tmp_path_factory.mktemp("cache"), CLIPS)


@pytest.mark.parametrize(
    "how", [{"clips_per_commit": 5}, {"clips_per_commit": 12}, {"store": "zarr"}], ids=str
)
def test_how_clips_were_committed_and_stored_changes_no_bit(
    how: dict[str, Any], level: CachedLevel, tmp_path: Path
) -> None:
    other = cache_of(tmp_path, CLIPS[::-1], **how)

    assert whitenings_of(other) == whitenings_of(level)


@pytest.mark.parametrize("first", [CLIPS[:7], CLIPS[::2]], ids=["the first", "every other"])
def test_rows_of_several_caches_whiten_as_those_of_one(
    first: list[FakeClip], level: CachedLevel, tmp_path: Path
) -> None:
    keys = {clip.key for clip in first}
    one = cache_of(tmp_path / "one", first, clips_per_commit=12)
    other = cache_of(tmp_path / "other", [clip for clip in CLIPS if clip.key not in keys])

    assert whitenings_of(one, other) == whitenings_of(other, one) == whitenings_of(level)


def test_a_pack_whitens_as_its_cache(level: CachedLevel, tmp_path: Path) -> None:
    pack = open_pack(write_pack(level, tmp_path / "p.safetensors", ref="current").path)

    assert {one: whitening_of(pack.sums(one)) for one in pack.shapes} == whitenings_of(level)


def test_a_mean_far_above_the_spread_costs_no_digits() -> None:
    # Their squares are 2**52 and a bit: exact as sums, but as a mean in float64 2/3 becomes 1.
    values = [2.0**26 - 1, 2.0**26, 2.0**26 + 1]

    whitening = whitening_of(_sums(str(value), [value], [value**2]) for value in values)

    assert whitening.mean == (2.0**26,)
    assert whitening.std == pytest.approx((math.sqrt(2 / 3),), rel=1e-15)


def test_whitened_modes_have_mean_0_and_variance_1_per_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    size, shift = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([5.0, 0.0, -2.0])
    latents = torch.randn(50, 3, 8, 8, generator=generator) * size[:, None, None]
    latents = latents + shift[:, None, None]
    moments = torch.cat([latents, torch.zeros_like(latents)], dim=1)

    whitened = whitening_of([mode_sums("a", moments)], spread="modes").whiten(latents)

    # Rounding to float32 where a mean is 50 times the spread.
    torch.testing.assert_close(whitened.mean((0, 2, 3)), torch.zeros(3), atol=2e-5, rtol=0)
    variance = whitened.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(3), atol=1e-5, rtol=0)


def test_unwhiten_is_the_inverse() -> None:
    whitening = Whitening(mean=(1.0, -20.0), std=(3.0, 0.01))
    latents = torch.randn(4, 5, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    back = whitening.unwhiten(whitening.whiten(latents))

    # float32 keeps 6e-8 of the value with the mean added, 20.
    torch.testing.assert_close(back, latents, atol=4e-6, rtol=0)


def test_a_dead_channel_is_divided_by_the_floor_and_not_by_its_rounding() -> None:
    whitening = Whitening(mean=(0.0, 2.0), std=(4.0, 1e-7), std_floor=1e-3)

    assert whitening.scale == (4.0, 4.0 * 1e-3)
    assert whitening.whitened_variance == pytest.approx((1.0, (1e-7 / 4e-3) ** 2))
    dead = whitening.whiten(torch.full((1, 2, 1, 1), 2 + 1e-3))[0, 1]
    # 1e-3 beside 2 is known to float32 to 1.2e-7.
    assert dead.item() == pytest.approx(0.25, abs=1e-4)


def test_a_record_gives_back_every_bit() -> None:
    whitening = whitening_of([_row(clip) for clip in fake_clips(3)])

    assert Whitening.from_record(json.loads(json.dumps(whitening.to_record()))) == whitening


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.0, 0.0]},
        {"std": [math.nan]},
        {"std": [-1.0]},
        {"std": [0.0]},
        {"std": "x"},
        {"std": None},
        {"std_floor": 0.0},
        {"spread": "both"},
    ],
)
def test_records_that_no_whitening_wrote_are_refused(change: dict[str, object]) -> None:
    record = Whitening(mean=(0.0,), std=(1.0,)).to_record()

    with pytest.raises(ValueError, match=r"."):
        Whitening.from_record(record | change)


def test_a_record_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="'std'"):
        Whitening.from_record({"mean": [0.0]})


GOOD = _row(fake_clips(1)[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([GOOD, GOOD], "comes twice"),
        ([replace(GOOD, channel_count=None, mean_sum=None, square_sum=None)], "has no sums"),
        ([replace(GOOD, channel_count=0)], "has no sums"),
        ([GOOD, replace(GOOD, clip="b", mean_sum=[1.0], square_sum=[1.0])], "other channels"),
        ([replace(GOOD, square_sum=[math.inf, 1.0])], "not finite"),
        ([_sums("a", [3.0], [9.0])], "no channel varies"),
    ],
)
def test_rows_that_cannot_be_whitened_by_are_refused(rows: list[LatentRow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitening_of(rows)


def test_latents_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents must be \(\.\.\., 1, row, column\)"):
        Whitening(mean=(0.0,), std=(1.0,)).whiten(torch.zeros(1, 2, 4, 4))
