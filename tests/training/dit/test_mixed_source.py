"""Training on several caches: which windows, how often, and what a resumed run must find."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latents.cache.layout import find_cache
from latents.cache.log import CommitLog
from latents.cache.mixed_order import MixedOrder
from latents.cache.pack_writer import write_pack
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import AnnotationRow, rows_to_table
from latents.errors import CacheError, ConfigError
from latents.testing import commit_clips, make_cache, perceptual_clips, perceptual_recipes
from latents.whitening import whitening_of
from tests.training.dit.small_runs import small_cache
from tests.training.dit.small_settings import small_settings
from training.dit.batches import VIDEO, WindowBatches
from training.dit.chosen_caches import ChosenCache
from training.dit.files import TrainedCache, load_dit
from training.dit.mixed_source import open_sources
from training.dit.run import RunProgress, train_dit
from training.dit.settings import DiTRunSettings
from training.dit.source import Reading, TrainingSource, open_source, pair_whitening

Chosen = Sequence[tuple[str | Path, float]]
SHARE = 0.3
KEEP_TWO = {"checkpoint_steps": 2}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("other"), num_clips=6, seed=1)


def chosen(caches: Chosen) -> list[ChosenCache]:
    return [ChosenCache(cache=cache, weight=weight) for cache, weight in caches]


def mixed(*caches: tuple[str | Path, float]) -> TrainingSource:
    return open_sources(chosen(caches), validation_share=SHARE)


def alone(cache: str) -> TrainingSource:
    return open_source(cache, ref="current", validation_share=SHARE)


def run(
    caches: Chosen,
    out: Path,
    settings: DiTRunSettings | None = None,
    *,
    resume: bool = False,
    reading: Reading = "resident",
    on_progress: Callable[[RunProgress], None] | None = None,
) -> list[RunProgress]:
    told: list[RunProgress] = []
    train_dit(
        chosen(caches),
        settings or small_settings(),
        out=out,
        resume=resume,
        device="cpu",
        reading=reading,
        on_progress=on_progress or told.append,
    )
    return told


def annotated(cache: str, split: str, *, num_clips: int, seed: int = 0) -> str:
    """The same cache, once people have named a split for its sources."""
    clips = perceptual_clips(num_clips, seed=seed)
    sources = [clip.key.source_digest for clip in clips]
    rows = [AnnotationRow(source=s, label=None, caption=None, split=split) for s in sources]
    layout = find_cache(cache)
    CommitLog(layout).append({"annotations": rows_to_table("annotations", rows)}, {})
    digests = {field: recipe.digest for field, recipe in perceptual_recipes().items()}
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=digests))
    return cache


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[RunProgress], None]:
    def kill(progress: RunProgress) -> None:
        if progress.train.step == step:
            raise Killed

    return kill


def test_windows_to_train_on_are_those_of_each_cache_as_often_as_it_weighs(
    one: str, other: str
) -> None:
    source = mixed((one, 1.0), (other, 2.0))
    parts = [alone(cache).windows("train") for cache in (one, other)]
    counts = tuple(part.num_windows for part in parts)

    assert source.order(7) == MixedOrder(source_windows=counts, weights=(1.0, 2.0), seed=7)
    assert source.num_windows("train") == sum(counts)
    stored = [part.take(np.arange(part.num_windows))[VIDEO] for part in parts]
    taken = source.windows("train").take(np.arange(sum(counts)))[VIDEO]
    np.testing.assert_array_equal(taken, np.concatenate(stored))


def test_windows_held_out_are_those_of_all_caches_once(one: str, other: str) -> None:
    source = mixed((one, 1.0), (other, 2.0))
    held_out = [alone(cache).windows("validation") for cache in (one, other)]

    windows = source.windows("validation")

    wanted = [part.place(n) for part in held_out for n in range(part.num_windows)]
    assert source.num_windows("validation") == windows.num_windows == len(wanted) > 0
    assert [windows.place(n) for n in range(windows.num_windows)] == wanted


def test_a_cache_that_holds_nothing_out_adds_nothing_to_validate(one: str, tmp_path: Path) -> None:
    cache = annotated(small_cache(tmp_path, seed=2), "train", num_clips=8, seed=2)
    source = mixed((cache, 1.0), (one, 1.0))
    assert source.num_windows("validation") == alone(one).num_windows("validation")
    assert source.windows("validation").place(0) == alone(one).windows("validation").place(0)


def test_whitening_is_of_each_row_once_whatever_the_weights(one: str, other: str) -> None:
    rows = [row for cache in (one, other) for row in alone(cache).sums("train", VIDEO)]

    whitenings = [pair_whitening(mixed((one, 1.0), (other, w))) for w in (1.0, 5.0)]

    assert whitenings[0] == whitenings[1]
    assert whitenings[0].video == whitening_of(rows)
    assert whitenings[0].video != pair_whitening(alone(one)).video


def test_a_window_that_is_seen_again_in_an_epoch_is_drawn_anew(one: str, other: str) -> None:
    source = mixed((one, 1.0), (other, 2.0))
    order = source.order(0)
    epochs, windows = order.at(0, order.epoch_windows)
    again = np.flatnonzero(windows == order.num_windows - 1)
    keys = [(int(epochs[place]), int(windows[place])) for place in again]
    batches = WindowBatches(
        windows=source.windows("train"), whitening=pair_whitening(source), draw="sample", seed=0
    )

    drawn = batches.of(windows[again], keys=keys).video

    assert sorted(keys) == [(0, order.num_windows - 1), (1, order.num_windows - 1)]
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("killed_at", [2, 5])
def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(
    killed_at: int, one: str, other: str, tmp_path: Path
) -> None:
    caches = [(one, 1.0), (other, 0.5)]
    settings = small_settings(optimisation=KEEP_TWO, data={"draw": "sample"})
    run(caches, tmp_path / "whole", settings)

    with pytest.raises(Killed):
        run(caches, tmp_path / "parts", settings, on_progress=kill_at(killed_at))
    run(caches, tmp_path / "parts", settings, resume=True)

    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_windows_from_shards_give_the_model_that_windows_in_memory_give(
    one: str, other: str, tmp_path: Path
) -> None:
    caches = [(one, 1.0), (other, 3.0)]
    run(caches, tmp_path / "resident")
    run(caches, tmp_path / "streaming", reading="streaming")
    assert files(tmp_path / "streaming") == files(tmp_path / "resident")


def test_a_cache_may_be_replaced_by_its_pack_on_the_way(
    one: str, other: str, tmp_path: Path
) -> None:
    pack = write_pack(
        open_cache(other, level="perceptual"), tmp_path / "p.safetensors", ref="current"
    ).path
    settings = small_settings(optimisation=KEEP_TWO)
    run([(one, 1.0), (other, 2.0)], tmp_path / "whole", settings)

    with pytest.raises(Killed):
        run([(one, 1.0), (other, 2.0)], tmp_path / "parts", settings, on_progress=kill_at(3))
    run([(one, 1.0), (pack, 2.0)], tmp_path / "parts", settings, resume=True)

    whole, parts = (load_dit(tmp_path / name).model for name in ("whole", "parts"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor)


def test_weights_change_the_model(one: str, other: str, tmp_path: Path) -> None:
    run([(one, 1.0), (other, 1.0)], tmp_path / "equal")
    run([(one, 1.0), (other, 4.0)], tmp_path / "more")
    names = ("equal", "more")
    equal, more = (files(tmp_path / name)["model.safetensors"] for name in names)
    assert equal != more


def test_progress_is_in_epochs_of_the_mixture(one: str, other: str, tmp_path: Path) -> None:
    told = run([(one, 1.0), (other, 3.0)], tmp_path)
    wanted = alone(one).num_windows("train") + 3 * alone(other).num_windows("train")
    assert told[-1].train.epoch == 6 * 4 / wanted


def test_what_was_trained_on_is_recorded(one: str, other: str, tmp_path: Path) -> None:
    run([(one, 1.0), (other, 2.0)], tmp_path)

    commits = [open_cache(cache, level="perceptual").commit for cache in (one, other)]
    recipes = {field: recipe.digest for field, recipe in perceptual_recipes().items()}
    assert json.loads((tmp_path / "config.json").read_text())["trained_on"] == {
        "caches": [
            {"cache": one, "commit": commits[0], "weight": 1.0, "num_silent": 0},
            {"cache": other, "commit": commits[1], "weight": 2.0, "num_silent": 0},
        ],
        "recipes": recipes,
    }
    assert load_dit(tmp_path).trained_on.caches[1] == TrainedCache(
        cache=other, commit=commits[1], weight=2.0
    )


@pytest.mark.parametrize(
    ("resumed", "difference"),
    [
        (lambda a, b: [(a, 1.0), (b, 3.0)], "cache.2.weight 2.0 (now 3.0)"),
        (lambda a, b: [(b, 2.0), (a, 1.0)], "cache.1.weight 1.0 (now 2.0)"),
        (lambda a, b: [(b, 1.0), (a, 2.0)], "cache.sources "),
        (lambda a, b: [(a, 1.0)], "cache.2.weight 2.0 (now None)"),
    ],
)
def test_other_caches_or_weights_do_not_resume_a_run(
    resumed: Callable[[str, str], Any], difference: str, one: str, other: str, tmp_path: Path
) -> None:
    run([(one, 1.0), (other, 2.0)], tmp_path, small_settings(optimisation={"steps": 1}))
    with pytest.raises(ConfigError) as caught:
        run(resumed(one, other), tmp_path, resume=True)
    assert difference in str(caught.value)


def test_a_later_commit_of_one_cache_does_not_resume_a_run(one: str, tmp_path: Path) -> None:
    other = small_cache(tmp_path / "other", seed=1)
    run([(one, 1.0), (other, 2.0)], tmp_path / "run")
    clips = perceptual_clips(9, seed=1)[8:]
    commit_clips(find_cache(other), clips, perceptual_recipes())
    annotated(other, "train", num_clips=0)
    with pytest.raises(ConfigError, match=r"cache\.2\.commit 3 \(now 4\)"):
        run([(one, 1.0), (other, 2.0)], tmp_path / "run", resume=True)


def test_latents_of_another_encoder_are_refused(one: str, tmp_path: Path) -> None:
    recipes = perceptual_recipes(weights="another")
    clips = perceptual_clips(4, seed=1)
    other = make_cache(tmp_path / "cache", clips=clips, recipes=recipes).url
    with pytest.raises(ConfigError, match="was made by recipe") as caught:
        mixed((one, 1.0), (other, 1.0))
    for told in (one, other, recipes["perceptual.audio"].digest[:16], "mmldm refresh"):
        assert told in str(caught.value)


def test_a_source_that_another_cache_holds_out_is_refused(one: str, tmp_path: Path) -> None:
    twin = annotated(small_cache(tmp_path), "test", num_clips=1)
    source = perceptual_clips(1)[0].key.source_digest
    with pytest.raises(ConfigError, match=f"source {source[:16]} belongs to split test") as caught:
        mixed((one, 1.0), (twin, 1.0))
    assert one in str(caught.value)
    assert twin in str(caught.value)


def test_sources_may_be_in_several_caches(one: str, tmp_path: Path) -> None:
    twin = small_cache(tmp_path, num_clips=12)
    source = mixed((one, 1.0), (twin, 1.0))
    wanted = alone(one).num_windows("train") + alone(twin).num_windows("train")
    assert source.num_windows("train") == source.order(0).epoch_windows == wanted
    # Whitened by each clip once: the first cache has no others than the second.
    assert pair_whitening(source) == pair_whitening(alone(twin))


def test_a_cache_without_windows_to_train_on_is_refused(one: str, tmp_path: Path) -> None:
    held_out = annotated(small_cache(tmp_path, seed=1), "validation", num_clips=8, seed=1)
    with pytest.raises(CacheError, match="has no window to train on: its 8 clips") as caught:
        mixed((one, 1.0), (held_out, 1.0))
    assert held_out in str(caught.value)


def test_a_cache_that_is_named_twice_is_refused(one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=r"is named 2 times; name it once, with a weight"):
        mixed((one, 1.0), (other, 1.0), (one, 2.0))


def test_a_weight_of_a_single_cache_is_refused(one: str) -> None:
    with pytest.raises(ConfigError, match="has weight 2, which means something only beside"):
        mixed((one, 2.0))
    assert mixed((one, 1.0)).order(0) == alone(one).order(0)


def test_several_caches_name_refs_of_their_own(one: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ref is 'mine', but each of several caches names its own"):
        train_dit(
            chosen([(one, 1.0), (other, 1.0)]),
            small_settings(),
            out=tmp_path,
            ref="mine",
            resume=False,
            device="cpu",
            on_progress=lambda progress: None,
        )
