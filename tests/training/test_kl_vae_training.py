"""Training a KL-VAE: resuming changes nothing, the average is kept, and it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latents.errors import ConfigError, ModelError
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import AutoencoderKL
from latents.weights import tensors_digest
from training.kl_vae import (
    CHECKPOINT_FILE,
    KLVAETrainConfig,
    KLVAETrainer,
    TrainProgress,
    export_kl_vae,
)
from training.picture_stream import OpenPictures, pool_pictures

CONFIG = KLVAETrainConfig(
    steps=6,
    batch_size=4,
    crop=16,
    warmup_steps=2,
    decay_steps=2,
    precision="fp32",
    ema_decay=0.5,
    checkpoint_steps=2,
    seed=7,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bytes are promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_autoencoder() -> AutoencoderKL:
    """One eighth would need larger pictures; a half is enough to train."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def gradients_of_colour(count: int = 12, size: int = 24) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 3, 2, 2, generator=rng)
    smooth = torch.nn.functional.interpolate(corners, size=(size, size), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def stream(config: KLVAETrainConfig, pool: Tensor | None = None) -> OpenPictures:
    pool = gradients_of_colour() if pool is None else pool
    return pool_pictures(pool, batch_size=config.batch_size, seed=config.seed)


def trained(config: KLVAETrainConfig, **settings: Any) -> KLVAETrainer:
    trainer = KLVAETrainer(small_autoencoder(), config)
    trainer.train(stream(config), **settings)
    return trainer


def digest(trainer: KLVAETrainer) -> tuple[str, str]:
    return (
        tensors_digest(trainer.autoencoder.state_dict()),
        tensors_digest(trainer.average.state_dict()),
    )


def test_equal_seeds_give_equal_weights() -> None:
    assert digest(trained(CONFIG)) == digest(trained(CONFIG))


def test_another_seed_gives_other_weights() -> None:
    assert digest(trained(CONFIG)) != digest(trained(replace(CONFIG, seed=8)))


def test_resuming_equals_never_having_stopped(tmp_path: Path) -> None:
    class Stop(Exception):
        """The power goes off."""

    def stop_after_five(progress: TrainProgress) -> None:
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        trained(
            CONFIG,
            checkpoint_folder=tmp_path / "run",
            on_progress=stop_after_five,
            report_steps=1,
        )
    resumed = KLVAETrainer(small_autoencoder(), CONFIG)
    resumed.restore(tmp_path / "run")
    assert resumed.step == 4
    resumed.train(stream(CONFIG))
    assert digest(resumed) == digest(trained(CONFIG))


def test_training_ends_with_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    trainer = trained(replace(CONFIG, steps=5), checkpoint_folder=tmp_path / "run")
    restored = KLVAETrainer(small_autoencoder(), replace(CONFIG, steps=5))
    restored.restore(tmp_path / "run")
    assert restored.step == 5
    assert digest(restored) == digest(trainer)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CHECKPOINT_FILE]


def test_a_resumed_run_may_be_lengthened(tmp_path: Path) -> None:
    trained(CONFIG, checkpoint_folder=tmp_path / "run")
    longer = KLVAETrainer(small_autoencoder(), replace(CONFIG, steps=8))
    longer.restore(tmp_path / "run")
    assert longer.step == 6


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trained(CONFIG, checkpoint_folder=tmp_path / "run")
    other = KLVAETrainer(small_autoencoder(), replace(CONFIG, kl_weight=1.0))
    with pytest.raises(ConfigError, match=r"kl_weight 1e-06 \(now 1\.0\)"):
        other.restore(tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = trained(CONFIG, checkpoint_folder=tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match="no usable checkpoint"):
        trainer.restore(tmp_path / "run")


@pytest.mark.parametrize("loss", ["mse", "log_mse"])
def test_it_learns_a_picture(loss: Any) -> None:
    config = replace(CONFIG, steps=30, batch_size=1, learning_rate=1e-2, decay_steps=10, loss=loss)
    reports: list[TrainProgress] = []
    KLVAETrainer(small_autoencoder(), config).train(
        stream(config, gradients_of_colour(1, size=16)),
        on_progress=reports.append,
        report_steps=10,
    )
    # 20 dB is a hundredth of the squared range; an untrained decoder gives 10.
    assert reports[-1].psnr > 20
    assert [report.step for report in reports] == [10, 20, 30]


def test_shards_change_the_sum_but_not_the_gradient() -> None:
    whole, halves = trained(CONFIG), trained(replace(CONFIG, shards=2))
    # Float32 sums in another order; Adam enlarges what is near zero, up to the rate itself.
    for one, other in zip(
        whole.autoencoder.parameters(), halves.autoencoder.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    assert digest(halves) == digest(trained(replace(CONFIG, shards=2)))


def test_the_average_follows_the_weights() -> None:
    trainer = KLVAETrainer(small_autoencoder(), replace(CONFIG, steps=2, decay_steps=0))
    first = trainer.autoencoder.decoder.conv_out.bias.detach().clone()
    history: list[Tensor] = []
    trainer.train(
        stream(CONFIG),
        on_progress=lambda _: history.append(
            trainer.autoencoder.decoder.conv_out.bias.detach().clone()
        ),
        report_steps=1,
    )
    # The decay of step k is min(0.5, (1 + k) / (10 + k)): 0.1, then 2/11.
    expected = 0.1 * first + 0.9 * history[0]
    expected = 2 / 11 * expected + 9 / 11 * history[1]
    torch.testing.assert_close(trainer.average.decoder.conv_out.bias, expected)


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    config = KLVAETrainConfig(steps=10, warmup_steps=2, decay_steps=4, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_each_batch_is_keyed_by_seed_and_step() -> None:
    open_pictures = stream(CONFIG)
    from_start = open_pictures(0)
    batches = [next(from_start) for _ in range(3)]
    assert torch.equal(next(open_pictures(2)), batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_an_exported_model_loads_with_its_measured_scaling_factor(tmp_path: Path) -> None:
    trainer = trained(CONFIG)
    pictures = gradients_of_colour()
    factor = export_kl_vae(trainer.average, tmp_path, pictures=pictures, half=True)
    vae = load_kl_vae(str(tmp_path))
    means = vae.encode(pictures)[:, : vae.latent_channels]
    assert vae.scaling_factor == factor
    # Five digits are kept of the factor, eleven bits of the weights.
    assert float((means * factor).std()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"shards": 0}, "shards is 0"),
        ({"steps": 3}, "do not fit"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_pictures_smaller_than_the_crop_are_refused() -> None:
    config = replace(CONFIG, crop=32)
    trainer = KLVAETrainer(small_autoencoder(), config)
    with pytest.raises(ValueError, match="smaller than the crop, 32"):
        trainer.train(stream(config))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        stream(CONFIG, torch.zeros(0, 3, 8, 8, dtype=torch.uint8))
