"""Training from a cache: the same run however it is interrupted, and a model that learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from latents.cache.layout import find_cache
from latents.cache.log import CommitLog
from latents.errors import CacheError, ConfigError, ModelError
from latents.recipe import sha256_hex
from tests.training.dit.small_runs import small_cache
from tests.training.dit.small_settings import small_settings
from training.dit.files import CONFIG_FILE, MODEL_FILE, BegunFrom, TrainedCache, load_dit
from training.dit.run import CHECKPOINT, METRICS_FILE, RunProgress, train_dit
from training.dit.settings import DiTRunSettings
from training.dit.source import Reading


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_cache(tmp_path_factory.mktemp("cache"))


def run(
    cache: str,
    out: Path,
    settings: DiTRunSettings | None = None,
    *,
    resume: bool = False,
    reading: Reading = "resident",
    init: Path | None = None,
    on_progress: Callable[[RunProgress], None] | None = None,
) -> list[RunProgress]:
    told: list[RunProgress] = []
    train_dit(
        cache,
        settings or small_settings(),
        out=out,
        ref="current",
        resume=resume,
        device="cpu",
        on_progress=on_progress or told.append,
        reading=reading,
        init=init,
    )
    return told


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [2, 3, 5])
def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(
    killed_at: int, cache: str, tmp_path: Path
) -> None:
    settings = small_settings(optimisation={"checkpoint_steps": 2})
    run(cache, tmp_path / "whole", settings)

    def kill(progress: RunProgress) -> None:
        if progress.train.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        run(cache, tmp_path / "parts", settings, on_progress=kill)
    told = run(cache, tmp_path / "parts", settings, resume=True)

    assert told[0].train.step == killed_at // 2 * 2 + 1
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_two_runs_are_equal_and_another_seed_is_not(cache: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(cache, tmp_path / name)
    run(cache, tmp_path / "other", small_settings(optimisation={"seed": 1}))

    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (
        files(tmp_path / "one")["model.safetensors"]
        != files(tmp_path / "other")["model.safetensors"]
    )


@pytest.mark.parametrize("reading", ["streaming", "device"])
@pytest.mark.parametrize("draw", ["mode", "sample"])
def test_however_windows_are_read_the_model_is_the_same(
    reading: Reading, draw: str, cache: str, tmp_path: Path
) -> None:
    settings = small_settings(data={"draw": draw})
    run(cache, tmp_path / "resident", settings)
    run(cache, tmp_path / reading, settings, reading=reading)

    assert files(tmp_path / reading) == files(tmp_path / "resident")


def test_a_run_that_is_there_is_not_overwritten(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume"):
        run(cache, tmp_path / "run")


@pytest.mark.parametrize(
    ("tables", "differs"),
    [
        ({"optimisation": {"batch_size": 2}}, "optimisation.batch_size 4 (now 2)"),
        ({"model": {"depth": 1}}, "model.depth 2 (now 1)"),
        ({"data": {"draw": "sample"}}, "data.draw 'mode' (now 'sample')"),
    ],
)
def test_other_settings_do_not_resume_a_run(
    tables: dict[str, Any], differs: str, cache: str, tmp_path: Path
) -> None:
    run(cache, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        run(cache, tmp_path / "run", small_settings(**tables), resume=True)
    assert differs in str(caught.value)


def test_a_run_may_be_made_longer(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    longer = small_settings(optimisation={"steps": 9})
    told = run(cache, tmp_path / "run", longer, resume=True)
    assert [one.train.step for one in told] == [7, 8, 9]


def test_other_latents_do_not_resume_a_run(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "cache")
    run(cache, tmp_path / "run")
    other = small_cache(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"cache\.whitening\.video\.mean"):
        run(other, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="no usable checkpoint"):
        run(cache, tmp_path / "run", resume=True)


def test_a_cache_whose_windows_are_all_held_out_is_refused(cache: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no window to train on"):
        run(cache, tmp_path, small_settings(data={"validation_share": 0.999999}))


def test_metrics_are_noted_with_every_validation(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path)
    lines = metrics(tmp_path)
    assert [line["train"]["step"] for line in lines] == [3, 6]
    assert lines[0]["validation"]["losses"].keys() == {
        *("svg", "a2v", "v2a", "a2v shuffled", "v2a shuffled", "linear")
    }


def test_curves_have_a_line_every_ten_steps_and_end_with_a_validation(
    cache: str, tmp_path: Path
) -> None:
    settings = small_settings(optimisation={"steps": 23}, validation={"every_steps": 20})
    told = run(cache, tmp_path, settings)
    lines = metrics(tmp_path)
    assert [line["train"] for line in lines] == [
        asdict(told[step - 1].train) for step in (10, 20, 23)
    ]
    assert ["validation" in line for line in lines] == [False, True, True]


def test_without_anything_held_out_curves_are_of_the_training_alone(
    cache: str, tmp_path: Path
) -> None:
    settings = small_settings(optimisation={"steps": 12}, data={"validation_share": 0.0})
    run(cache, tmp_path, settings)
    assert [line.keys() for line in metrics(tmp_path)] == [{"train"}, {"train"}]


def test_curves_of_a_resumed_run_are_those_of_one_that_never_stopped(
    cache: str, tmp_path: Path
) -> None:
    tables = {"validation": {"every_steps": 15}, "data": {"validation_share": 0.3}}
    settings = small_settings(optimisation={"steps": 32, "checkpoint_steps": 8}, **tables)
    run(cache, tmp_path / "whole", settings)

    def kill(progress: RunProgress) -> None:
        if progress.train.step == 30:
            raise Killed

    with pytest.raises(Killed):
        run(cache, tmp_path / "parts", settings, on_progress=kill)
    noted = [line["train"]["step"] for line in metrics(tmp_path / "parts")]
    run(cache, tmp_path / "parts", settings, resume=True)

    assert noted == [10, 15, 20, 30]  # to go on from 24
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_what_was_saved_is_the_average_with_all_that_sampling_needs(
    cache: str, tmp_path: Path
) -> None:
    settings = small_settings()
    trained = train_dit(
        cache,
        settings,
        out=tmp_path,
        ref="current",
        resume=False,
        device="cpu",
        on_progress=lambda progress: None,
    )
    loaded = load_dit(tmp_path)

    assert loaded.model.state_dict().keys() == trained.model.state_dict().keys()
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert (loaded.diffusion, loaded.whitening) == (settings.diffusion, trained.whitening)
    assert loaded.trained_on == trained.trained_on
    head = CommitLog(find_cache(cache)).head()
    assert loaded.trained_on.caches == (TrainedCache(cache=cache, commit=head),)
    assert loaded.steps == 6


@pytest.mark.slow
def test_what_a_window_sounds_like_helps_to_denoise_how_it_looks(tmp_path: Path) -> None:
    # Each window's loudness is the offset of one channel of both latents: one tells the other.
    cache = small_cache(tmp_path / "cache", num_clips=200)
    settings = small_settings(
        optimisation={"steps": 600, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.98},
        tasks={"audio_to_video": 0.3, "video_to_audio": 0.3},
        data={"validation_share": 0.2},
        validation={"every_steps": 600, "num_windows": 200, "draws": 8},
    )
    told = run(cache, tmp_path / "run", settings)

    validation = told[-1].validation
    assert validation is not None
    losses = validation.losses
    assert losses["svg"].video < losses["linear"].video
    assert losses["svg"].audio < losses["linear"].audio
    assert losses["a2v"].video < losses["svg"].video < losses["a2v shuffled"].video
    assert losses["v2a"].audio < losses["svg"].audio < losses["v2a shuffled"].audio


def test_a_run_records_what_it_began_from(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "first")
    run(cache, tmp_path / "second", init=tmp_path / "first")

    begun_from = load_dit(tmp_path / "second").begun_from
    weights = (tmp_path / "first" / MODEL_FILE).read_bytes()
    assert load_dit(tmp_path / "first").begun_from is None
    assert begun_from == BegunFrom(
        name=str(tmp_path / "first"), steps=6, weights=sha256_hex(weights)
    )


def test_weights_beside_the_config_of_another_save_are_refused(cache: str, tmp_path: Path) -> None:
    run(cache, tmp_path / "run")
    config = tmp_path / "run" / CONFIG_FILE
    config.write_text(config.read_text().replace('"steps": 6', '"steps": 7'))

    with pytest.raises(ModelError, match=r"saved with another config\.json"):
        load_dit(tmp_path / "run")
