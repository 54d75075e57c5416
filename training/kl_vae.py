"""Training a KL-VAE on pictures: frames and mel images alike.

The loop knows nothing of where pictures come from. It is deterministic: a run that was stopped
and resumed on the CPU ends with the same bytes as one that never was.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import AdamW

from latents.durable import replace_file
from latents.errors import ConfigError, ModelError
from latents.models.kl_vae_files import AutoencoderKL, save_autoencoder
from training.picture_stream import OpenPictures, generator_of, random_crops

Loss = Literal["mse", "log_mse"]
TrainPrecision = Literal["fp32", "bf16"]

CHECKPOINT_FILE = "checkpoint.safetensors"
_STILL_OPEN = (
    "steps",
    "decay_steps",
    "learning_rate",
    "batch_size",
    "crop",
    "checkpoint_steps",
    "shards",
)
"""Settings that a resumed run may change: to end sooner or later than was planned, or on larger
crops, which are nearer to whole pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAETrainConfig:
    """How a KL-VAE is trained."""

    steps: int
    """Optimiser steps in all."""
    batch_size: int = 16
    """Pictures of a step."""
    crop: int = 64
    """Side of the square cut from each picture, in pixels; a multiple of the downsampling."""
    learning_rate: float = 6e-4
    """Peak rate of AdamW, after the warm-up and before the decay."""
    warmup_steps: int = 200
    """Steps over which the rate rises linearly from zero."""
    decay_steps: int = 1000
    """Last steps, over which the rate falls linearly to zero."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    loss: Loss = "log_mse"
    """``log_mse`` is the mean of log(error + 0.004) over the pictures: it climbs in decibels, so
    that smooth pictures count as much as busy ones."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence, which is summed over a picture's latent."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is what is kept."""
    precision: TrainPrecision = "bf16"
    """``bf16`` is autocast; weights, their average and the optimiser stay float32."""
    shards: int = 1
    """Equal parts of a batch, computed side by side on a thread each. On a busy CPU this is much
    faster than as many threads within each operation, which wait for one another."""
    seed: int = 0
    checkpoint_steps: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "shards", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if not 0 <= self.warmup_steps + self.decay_steps <= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit "
                f"into {self.steps} steps; set them too, such as --set warmup_steps=0"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step: linear warm-up, constant, linear decay to zero."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.learning_rate * min(1.0, rise, fall)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """What happened since the last report."""

    step: int
    """Steps done."""
    loss: float
    psnr: float
    """Mean over the pictures trained on, in dB, of draws from the posterior."""
    kl: float
    """KL divergence per latent element, in nats."""
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """Gradients of a part of a batch, and its loss, PSNR and divergence; all are sums."""

    gradients: tuple[Tensor, ...]
    sums: Tensor


class KLVAETrainer:
    """A KL-VAE in training: weights, their moving average, the optimiser and the step.

    Args:
        autoencoder: Trained in place, on the device it is on.
        config: How to train it.
    """

    def __init__(self, autoencoder: AutoencoderKL, config: KLVAETrainConfig) -> None:
        self.config = config
        self.step = 0
        # diffusers wraps `to` without types.
        module: Any = autoencoder.train().requires_grad_(True)
        module.to(memory_format=torch.channels_last)
        self.autoencoder = autoencoder
        self.average = copy.deepcopy(self.autoencoder).eval().requires_grad_(False)
        self._parameters: list[Tensor] = list(self.autoencoder.parameters())
        self._average_parameters: list[Tensor] = list(self.average.parameters())
        self._latent_channels = int(autoencoder.config["latent_channels"])
        self._downsample = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        self._threads = ThreadPoolExecutor(config.shards, thread_name_prefix="shard")
        self._optimizer = AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            foreach=True,
        )

    def train(
        self,
        open_pictures: OpenPictures,
        *,
        checkpoint_folder: Path | None = None,
        on_progress: Callable[[TrainProgress], None] | None = None,
        report_steps: int = 50,
    ) -> None:
        """Train from the present step to the last one.

        Args:
            open_pictures: Opens the stream of pictures at a step. Pictures larger than the crop
                are cut at places keyed by (seed, step).
            checkpoint_folder: Where to save, every ``checkpoint_steps`` and at the end.
            on_progress: Called every ``report_steps``.
            report_steps: Steps between two reports.
        """
        pictures = open_pictures(self.step)
        recent: list[tuple[float, float, float, float]] = []
        while self.step < self.config.steps:
            recent.append(self._train_step(next(pictures)))
            self.step += 1
            done = self.step == self.config.steps
            if on_progress is not None and (self.step % report_steps == 0 or done):
                loss, psnr, kl, grad_norm = (
                    math.fsum(c) / len(recent) for c in zip(*recent, strict=True)
                )
                rate = self.config.learning_rate_at(self.step - 1)
                on_progress(
                    TrainProgress(
                        step=self.step,
                        loss=loss,
                        psnr=psnr,
                        kl=kl,
                        grad_norm=grad_norm,
                        learning_rate=rate,
                    )
                )
                recent.clear()
            if checkpoint_folder and (self.step % self.config.checkpoint_steps == 0 or done):
                self.save(checkpoint_folder)

    def _train_step(self, pictures: Tensor) -> tuple[float, float, float, float]:
        config = self.config
        device = self._parameters[0].device
        rng = generator_of(config.seed, "step", self.step)
        crops = random_crops(pictures, config.crop, rng)
        latent = (self._latent_channels, *(side // self._downsample for side in crops.shape[-2:]))
        noise = torch.randn((len(crops), *latent), generator=rng).to(device)
        target = (crops.to(device).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        shards = list(
            self._threads.map(
                self._gradients, target.chunk(config.shards), noise.chunk(config.shards)
            )
        )
        for index, parameter in enumerate(self._parameters):
            parameter.grad = sum(
                (shard.gradients[index] for shard in shards[1:]), start=shards[0].gradients[index]
            ).div_(len(crops))
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self._optimizer.step()
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average_parameters, self._parameters, 1 - decay)
        loss, psnr, kl = (torch.stack([s.sums for s in shards]).sum(dim=0) / len(crops)).tolist()
        return loss, psnr, kl, float(grad_norm)

    def _gradients(self, target: Tensor, noise: Tensor) -> _Shard:
        """Summed over a shard's pictures (batch, 3, height, width) in [-1, 1]."""
        config = self.config
        half = config.precision == "bf16"
        with torch.autocast(target.device.type, torch.bfloat16, enabled=half):
            posterior = self.autoencoder.encode(target).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            draw = mean + noise * torch.exp(0.5 * logvar)
            decoded = self.autoencoder.decode(draw).sample
        error = (decoded.float() - target).square().mean(dim=(1, 2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        reconstruction = (error + 0.004).log() if config.loss == "log_mse" else error
        loss = (reconstruction + config.kl_weight * kl.sum(dim=(1, 2, 3))).sum()
        gradients = torch.autograd.grad(loss, self._parameters)
        psnr = 10 * torch.log10(4 / error.detach().clamp(min=1e-8))
        sums = [loss.detach(), psnr.sum(), kl.detach().mean(dim=(1, 2, 3)).sum()]
        return _Shard(gradients=gradients, sums=torch.stack(sums))

    def save(self, folder: Path) -> None:
        """Write a checkpoint, one safetensors file; it replaces the one there as a whole."""
        tensors = {
            **{f"model.{name}": t for name, t in self.autoencoder.state_dict().items()},
            **{f"average.{name}": t for name, t in self.average.state_dict().items()},
            **{
                f"optimizer.{index}.{name}": tensor
                for index, values in self._optimizer.state_dict()["state"].items()
                for name, tensor in values.items()
            },
        }
        state = json.dumps({"step": self.step, "config": asdict(self.config)})
        content = save({n: t.contiguous() for n, t in tensors.items()}, metadata={"state": state})
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / CHECKPOINT_FILE, content)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: It is missing or damaged, or of another architecture.
            ConfigError: It was trained with other settings.
        """
        path = folder / CHECKPOINT_FILE
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                self._check_config(path, state["config"])
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    part, _, rest = name.partition(".")
                    parts[part][rest] = file.get_tensor(name)
            self.autoencoder.load_state_dict(parts["model"])
            self.average.load_state_dict(parts["average"])
            self._load_optimizer(parts["optimizer"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path}: no usable checkpoint of this KL-VAE: {error}") from error
        self.step = int(state["step"])

    def _check_config(self, path: Path, found: dict[str, object]) -> None:
        wanted = json.loads(json.dumps(asdict(self.config)))
        differing = [
            f"{name} {found.get(name)!r} (now {value!r})"
            for name, value in wanted.items()
            if name not in _STILL_OPEN and found.get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"{path}: the checkpoint was trained with other settings: "
                f"{', '.join(differing)}. Use those, or start afresh elsewhere."
            )

    @torch.no_grad()
    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, entry = name.partition(".")
            if tensor.ndim:
                # Files keep no memory layout, and the optimiser wants that of the weight.
                tensor = torch.empty_like(self._parameters[int(index)]).copy_(tensor)
            state.setdefault(int(index), {})[entry] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


def export_kl_vae(
    autoencoder: AutoencoderKL, folder: Path, *, pictures: Tensor, half: bool = False
) -> float:
    """Write a trained KL-VAE, its scaling factor measured, as a folder that `load_kl_vae` reads.

    Args:
        autoencoder: Usually a trainer's ``average``.
        folder: Where to.
        pictures: uint8 (picture, 3, height, width), for the scaling factor: one over the standard
            deviation of their posterior means.
        half: Store the weights in float16.

    Returns:
        The scaling factor.
    """
    device = next(autoencoder.parameters()).device
    with torch.no_grad():
        means = [
            autoencoder.encode(picture[None].to(device).float() / 127.5 - 1).latent_dist.mean.cpu()
            for picture in pictures
        ]
    deviation = cast(float, torch.cat(means).double().std().item())
    scaling_factor = float(f"{1 / deviation:.5g}")
    register: Callable[..., None] = autoencoder.register_to_config
    register(scaling_factor=scaling_factor)
    save_autoencoder(autoencoder, folder, half=half)
    return scaling_factor
