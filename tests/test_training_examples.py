"""Through the interfaces of others, training sees the windows that it must, and the same bytes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from latents.cache.batches import GlobalBatches
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.order import TrainingOrder
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.cache.rows import TombstoneRow, rows_to_table
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    make_cache,
    perceptual_clips,
    perceptual_recipes,
)
from tests.latents.window_caches import perceptual_cache

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAININGS = ["train_with_torch", "train_with_accelerate"]


@pytest.fixture(scope="module", autouse=True)
def _examples_run_on_the_cpu() -> Iterator[None]:
    """As scripts of their folder, where bytes do not depend on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("torch.accelerator.is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that tests start
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 clips, of which 18 are trained on: 90 windows, not quite three batches an epoch."""
    return perceptual_cache(tmp_path_factory.mktemp("cache"), num_clips=24).url


@contextmanager
def noted_windows() -> Iterator[list[list[int]]]:
    """The numbers of the windows of every batch that the model is trained on meanwhile."""
    batches: list[list[int]] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ == "Squeeze" and torch.is_grad_enabled():
            batches.append(inputs[0]["windows"].tolist())

    hook = register_module_forward_pre_hook(note)
    yield batches
    hook.remove()


@pytest.fixture
def seen() -> Iterator[list[list[int]]]:
    with noted_windows() as batches:
        yield batches


def train(example: str, cache: str, checkpoint: Path, num_steps: int) -> dict[str, Any]:
    import_module(example).main(cache, checkpoint, num_steps)
    states: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return states


def windows_of(step: int) -> list[int]:
    """What one process must see at a step."""
    order = TrainingOrder(num_windows=90, seed=0)
    windows: list[int] = GlobalBatches(order=order, batch_size=32).at(step)[1].tolist()
    return windows


@pytest.mark.parametrize("example", TRAININGS)
def test_no_window_is_dropped_or_repeated(
    example: str, cache: str, tmp_path: Path, seen: list[list[int]]
) -> None:
    states = train(example, cache, tmp_path / "model.pt", 6)

    assert seen == [windows_of(step) for step in range(6)]
    assert sorted(list(chain(*seen))[:90]) == list(range(90))  # an epoch
    assert states["loader"] == {"step": 6, "seed": 0, "num_windows": 90, "batch_size": 32}


@pytest.mark.parametrize("example", TRAININGS)
def test_a_training_that_went_on_is_one_that_never_stopped(
    example: str, cache: str, tmp_path: Path, seen: list[list[int]]
) -> None:
    whole = train("train_with_torch", cache, tmp_path / "whole.pt", 4)
    seen.clear()

    train(example, cache, tmp_path / "parts.pt", 3)
    parts = train(example, cache, tmp_path / "parts.pt", 4)

    assert seen == [windows_of(step) for step in range(4)]
    torch.testing.assert_close(parts["model"], whole["model"], rtol=0, atol=0)


def test_held_out_sources_are_squeezed_as_well(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("train_with_torch", cache, tmp_path / "model.pt", 60)

    told = capsys.readouterr().out
    error = float(told.removeprefix("60 steps: error ").removesuffix(" on 30 windows\n"))
    assert error < 0.9  # 1.05 after 5 steps


@pytest.mark.parametrize("num_clips", [1, 2])
def test_a_cache_too_small_to_hold_out_from_is_refused(tmp_path: Path, num_clips: int) -> None:
    layout = perceptual_cache(tmp_path / "cache", num_clips=num_clips)
    with pytest.raises(SystemExit, match="too few sources"):
        import_module("train_with_torch").main(layout.url, tmp_path / "model.pt", 1)


RANK = f"""
import json, os, sys
from importlib import import_module
from pathlib import Path
sys.path[:0] = [{str(EXAMPLES)!r}, {str(EXAMPLES.parent)!r}]
from tests.test_training_examples import noted_windows
example, cache, folder = sys.argv[1:]
with noted_windows() as seen:
    import_module(example).main(cache, Path(folder, "two.pt"), 4)
Path(folder, os.environ["RANK"]).write_text(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.parametrize("example", TRAININGS)
def test_two_processes_see_their_parts_and_take_the_steps_of_one(
    example: str, cache: str, tmp_path: Path
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = [str(tmp_path / "rank.py"), example, cache, str(tmp_path)]
    subprocess.run([*torchrun, "--nproc-per-node", "2", *arguments], check=True, timeout=200)

    one = train("train_with_torch", cache, tmp_path / "one.pt", 4)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == [
        windows_of(step) for step in range(4)
    ]
    assert two["loader"] == one["loader"]
    # A mean over both parts is rounded otherwise than one over the whole.
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-3, atol=1e-5)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Addresses that were asked for or connected to, in vain."""
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", True)  # as by default
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "locks")
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def test_only_what_the_log_counts_is_read_with_datasets(
    tmp_path: Path, connections: list[Any]
) -> None:
    level = open_cache(a_cache_with_a_past(tmp_path).url, level="kl")

    found = list(import_module("read_with_datasets").tensors_of(level))

    assert sorted((clip, field) for clip, field, _ in found) == [
        (clip.clip, field) for clip in level for field in ("kl.audio", "kl.video")
    ]
    clips = {clip.clip: clip for clip in level}
    assert len(clips) == 3
    for clip, field, tensor in found:
        np.testing.assert_array_equal(tensor, level.read(clips[clip], field))
    assert connections == []


@pytest.mark.usefixtures("connections")
def test_tensors_read_with_datasets_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_module("read_with_datasets").main(a_cache_with_a_past(tmp_path).url, "kl")

    told = capsys.readouterr().out
    assert told == "kl.video  3 of 3 clips, 3 equal\nkl.audio  3 of 3 clips, 3 equal\n"


def test_zarr_shards_are_left_to_another_example(tmp_path: Path) -> None:
    layout = make_cache(tmp_path, store="zarr")
    with pytest.raises(SystemExit, match="read_zarr_shard"):
        import_module("read_with_datasets").main(layout.url, "kl")


def a_cache_with_a_past(root: Path) -> CacheLayout:
    """Of four clips one left, two have another level beside, and all have sound of two recipes."""
    recipes = fake_recipes() | perceptual_recipes()
    clips = fake_clips(4)
    with_more = [
        replace(clip, tensors={**clip.tensors, **more.tensors})
        for clip, more in zip(clips[:2], perceptual_clips(2), strict=True)
    ]
    layout = make_cache(root, clips=with_more, recipes=recipes)
    commit_clips(layout, clips[2:], recipes)
    renewed = fake_recipes(weights="renewed")
    sounds = [replace(clip, tensors={"kl.audio": clip.tensors["kl.audio"] + 1}) for clip in clips]
    commit_clips(layout, sounds, renewed)
    gone = TombstoneRow(
        reason="dropped",
        uri=None,
        source=clips[1].key.source_digest,
        clip=None,
    )
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({"tombstones": rows_to_table("tombstones", [gone])}, {})
    digests = {"kl.video": recipes["kl.video"].digest, "kl.audio": renewed["kl.audio"].digest}
    write_ref(layout, "current", Ref(commit=log.head(), recipes=digests))
    return layout
