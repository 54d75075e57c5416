"""Training a small autoencoder: it starts linear, learns motion, and resumes to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latents.cache.reader import CachedLevel
from latents.config import load_config
from latents.errors import ConfigError, ModelError
from latents.models.autoencoder_files import (
    Autoencoder,
    fresh_autoencoder,
    load_signal_decoder,
    save_autoencoder,
    tiny_autoencoder_config,
)
from latents.models.modal_encoder_files import MODEL_FILE, load_modal_encoders
from latents.posterior import posterior_mode
from tests.training.moving_windows import moving_level
from training.autoencoder_run import (
    CHECKPOINT_FILE,
    MEASURED_FILE,
    METRICS_FILE,
    AutoencoderRunSettings,
    DataSettings,
    ModelSettings,
    RunProgress,
    TrainedAutoencoder,
    train_autoencoder,
)
from training.linear_start import principal_patches, start_as_linear_codec
from training.optim import OptimisationSettings
from training.reconstruction import measure_reconstruction
from training.window_latents import WindowLatents

SETTINGS = AutoencoderRunSettings(
    optimisation=OptimisationSettings(
        steps=4,
        batch_size=2,
        learning_rate=1e-3,
        warmup_steps=1,
        decay_steps=1,
        ema_decay=0.5,
        seed=5,
        checkpoint_steps=2,
    ),
    model=ModelSettings(decoder_channels=8, coarse_blocks=1, fine_blocks=1),
    data=DataSettings(validation_share=0.5),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bytes are promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> CachedLevel:
    return moving_level(tmp_path_factory.mktemp("cache"))


def with_optimisation(**changes: Any) -> AutoencoderRunSettings:
    return replace(SETTINGS, optimisation=replace(SETTINGS.optimisation, **changes))


def train(
    level: CachedLevel,
    out: Path,
    settings: AutoencoderRunSettings = SETTINGS,
    *,
    resume: bool = False,
    **how: Any,
) -> TrainedAutoencoder:
    how = {"on_progress": lambda progress: None, **how}
    return train_autoencoder(level, settings, out=out, resume=resume, device="cpu", **how)


def linear_codec(level: CachedLevel) -> tuple[Autoencoder, WindowLatents]:
    windows = WindowLatents(level, level.clips)
    config = tiny_autoencoder_config(
        frames=4, video_size=8, audio_size=8, decoder_channels=8, coarse_blocks=1
    )
    autoencoder = fresh_autoencoder(config, seed=0)
    start_as_linear_codec(
        autoencoder,
        windows.take(range(windows.num_windows)),
        video_whitening=windows.video_whitening,
        audio_whitening=windows.audio_whitening,
    )
    return autoencoder, windows


class Stop(Exception):
    """The power goes off."""


def stop_after(step: int) -> Callable[[RunProgress], None]:
    def stop(progress: RunProgress) -> None:
        if progress.train.step == step:
            raise Stop

    return stop


@pytest.mark.parametrize(("steps", "checkpoint_steps", "stopped_at"), [(4, 2, 3), (23, 8, 20)])
def test_resuming_equals_never_having_stopped(
    steps: int, checkpoint_steps: int, stopped_at: int, level: CachedLevel, tmp_path: Path
) -> None:
    settings = with_optimisation(steps=steps, checkpoint_steps=checkpoint_steps)
    train(level, tmp_path / "whole", settings)
    stop = stop_after(stopped_at)
    with pytest.raises(Stop):
        train(level, tmp_path / "cut", settings, on_progress=stop, report_steps=1)
    assert not (tmp_path / "cut" / MODEL_FILE).exists()
    train(level, tmp_path / "cut", settings, resume=True)
    for name in (MODEL_FILE, CHECKPOINT_FILE, MEASURED_FILE, METRICS_FILE, "config.json"):
        whole, cut = (tmp_path / run / name for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


def test_curves_have_a_line_every_ten_steps_and_at_the_end(
    level: CachedLevel, tmp_path: Path
) -> None:
    reports: list[RunProgress] = []
    settings = with_optimisation(steps=12)
    train(level, tmp_path, settings, on_progress=reports.append, report_steps=1)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines == [{"train": asdict(reports[step - 1].train)} for step in (10, 12)]


def test_each_report_says_how_fast_a_run_is(level: CachedLevel, tmp_path: Path) -> None:
    reports: list[RunProgress] = []
    train(level, tmp_path, on_progress=reports.append, report_steps=2)
    assert [report.train.step for report in reports] == [2, 4]
    assert all(0 < report.steps_per_second < 1e6 for report in reports)


def test_a_run_in_a_folder_called_tiny_measures_what_it_trained(
    level: CachedLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = train(level, Path("tiny"))
    assert trained.held_out == train(level, tmp_path / "other").held_out


def test_another_seed_gives_another_autoencoder(level: CachedLevel, tmp_path: Path) -> None:
    train(level, tmp_path / "one")
    train(level, tmp_path / "other", with_optimisation(seed=6))
    one, other = (tmp_path / run / MODEL_FILE for run in ("one", "other"))
    assert one.read_bytes() != other.read_bytes()


def test_training_ends_in_a_folder_that_encodes_and_decodes(
    level: CachedLevel, tmp_path: Path
) -> None:
    trained = train(level, tmp_path)
    encoders, decoder = load_modal_encoders(tmp_path), load_signal_decoder(tmp_path)
    batch = WindowLatents(level, level.clips).take([0, 7])
    z_v = posterior_mode(encoders.encode_video(batch.video))
    z_a = posterior_mode(encoders.encode_audio(batch.audio))
    assert decoder.decode_video(z_v).shape == batch.video.shape
    assert decoder.decode_audio(z_a).shape == batch.audio.shape
    assert trained.held_out is not None
    measured = json.loads((tmp_path / MEASURED_FILE).read_text())
    assert measured["held_out"] == trained.held_out.to_record()
    assert measured["steps"] == 4


def test_a_fresh_start_gives_back_what_is_linear_at_once(level: CachedLevel) -> None:
    autoencoder, windows = linear_codec(level)
    error = measure_reconstruction(autoencoder.eval(), windows)
    # 64 numbers of a patch become 16: those of a mean frame, or better ones.
    assert error.video_ratio < 0.6
    # A mel image's patch is told by its mean, its row and a colour.
    assert error.audio_error < 0.05


def test_training_learns_what_is_not_linear(level: CachedLevel, tmp_path: Path) -> None:
    before = measure_reconstruction(*linear_codec(level))
    reports: list[RunProgress] = []
    settings = with_optimisation(steps=30, batch_size=4, learning_rate=3e-3, decay_steps=15)
    train(level, tmp_path, settings, on_progress=reports.append, report_steps=10)
    assert [report.train.step for report in reports] == [10, 20, 30]
    assert reports[-1].train.video_error < 0.8 * before.video_error
    assert reports[-1].train.video_error < reports[0].train.video_error


def test_the_mean_frame_is_what_the_ratio_is_measured_by(level: CachedLevel) -> None:
    autoencoder, windows = linear_codec(level)
    error = measure_reconstruction(autoencoder, windows)
    video = windows.video_whitening.whiten(windows.take(range(windows.num_windows)).video)
    by_hand = video.var(dim=1, correction=0).mean()
    assert error.num_windows == windows.num_windows == 30
    assert error.mean_frame_error == pytest.approx(float(by_hand), rel=1e-5)
    assert error.video_ratio == error.video_error / error.mean_frame_error


def test_principal_patches_are_those_of_the_images() -> None:
    rng = torch.Generator().manual_seed(0)
    wanted = torch.linalg.qr(torch.randn(8, 2, generator=rng)).Q.T
    codes = torch.randn(500, 2, generator=rng) * torch.tensor([3.0, 0.5])
    patches = (codes @ wanted).reshape(500, 2, 2, 2)
    found = principal_patches(patches, size=2, num=2).flatten(1)
    shares = codes.square().mean(dim=0).sqrt()
    # 500 draws: the two directions are not quite uncorrelated.
    torch.testing.assert_close(found.norm(dim=1), shares, rtol=0.05, atol=0)
    assert (found @ wanted.T).abs().diagonal().div(found.norm(dim=1)).min() > 0.99


def test_a_run_is_not_begun_twice_in_one_folder(level: CachedLevel, tmp_path: Path) -> None:
    train(level, tmp_path)
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume"):
        train(level, tmp_path)


def test_a_run_is_resumed_with_its_own_settings_only(level: CachedLevel, tmp_path: Path) -> None:
    train(level, tmp_path)
    with pytest.raises(ConfigError, match=r"optimisation\.seed 5 \(now 6\)"):
        train(level, tmp_path, with_optimisation(seed=6), resume=True)
    other = replace(SETTINGS, data=DataSettings(validation_share=0.4))
    with pytest.raises(ConfigError, match=r"data\.validation_share 0\.5 \(now 0\.4\)"):
        train(level, tmp_path, other, resume=True)


def test_a_run_is_not_resumed_on_other_latents(
    level: CachedLevel, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    train(level, tmp_path)
    more = moving_level(tmp_path_factory.mktemp("more"), num_clips=8)
    with pytest.raises(ConfigError, match=r"cache\.commit 2 \(now 3\)"):
        train(more, tmp_path, resume=True)


def test_a_finished_run_may_be_lengthened(level: CachedLevel, tmp_path: Path) -> None:
    train(level, tmp_path)
    reports: list[RunProgress] = []
    longer = with_optimisation(steps=6)
    train(level, tmp_path, longer, resume=True, on_progress=reports.append, report_steps=1)
    assert [report.train.step for report in reports] == [5, 6]


def test_a_run_may_start_from_another_autoencoder(level: CachedLevel, tmp_path: Path) -> None:
    train(level, tmp_path / "first")
    hardly = with_optimisation(steps=1, warmup_steps=0, learning_rate=1e-9, decay_steps=0)
    train(level, tmp_path / "second", hardly, init=tmp_path / "first")
    first, second = (load_modal_encoders(tmp_path / run).video for run in ("first", "second"))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), atol=1e-6, rtol=0)


def test_there_must_be_something_to_start_from(level: CachedLevel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no autoencoder"):
        train(level, tmp_path / "run", init=tmp_path / "nowhere")


def test_a_run_does_not_start_from_another_size_than_is_asked_for(
    level: CachedLevel, tmp_path: Path
) -> None:
    train(level, tmp_path / "first")
    wider = replace(SETTINGS, model=replace(SETTINGS.model, decoder_channels=16))

    with pytest.raises(ConfigError, match=r"decoder_channels=8.* ask for .*decoder_channels=16"):
        train(level, tmp_path / "second", wider, init=tmp_path / "first")


def test_what_a_run_starts_from_must_fit_the_windows(level: CachedLevel, tmp_path: Path) -> None:
    config = tiny_autoencoder_config(frames=4, video_size=16, audio_size=16, decoder_channels=8)
    save_autoencoder(tmp_path / "larger", fresh_autoencoder(config, seed=0))
    with pytest.raises(ConfigError, match=r"of \(4, 4, 16, 16\), but .* \(4, 4, 8, 8\)"):
        train(level, tmp_path / "run", init=tmp_path / "larger")


def test_a_damaged_checkpoint_is_refused(level: CachedLevel, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match="no usable checkpoint"):
        train(level, tmp_path, resume=True)


def test_nothing_held_out_is_nothing_measured(level: CachedLevel, tmp_path: Path) -> None:
    everything = replace(SETTINGS, data=DataSettings(validation_share=0))
    trained = train(level, tmp_path, everything)
    assert (trained.num_windows, trained.held_out) == (30, None)
    assert json.loads((tmp_path / MEASURED_FILE).read_text())["held_out"] is None


def test_the_tiny_preset_is_read() -> None:
    settings = load_config(AutoencoderRunSettings, kind="autoencoder", presets=["tiny"])
    assert settings.optimisation.steps == 2000
