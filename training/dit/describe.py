"""How large a diffusion transformer is, counted on the model itself without allocating it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.diffusion.pair import Latents
from training.diffusion.tasks import condition_for
from training.dit.config import DiTConfig
from training.dit.model import DiT


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTDescription:
    """The size of a model and the work of one forward pass for one sample."""

    num_parameters: int
    """Trained parameters of the network, without the learned context, as MM-LDM counts them."""
    num_context_parameters: int
    """Trained parameters of the learned context, which feeds the network and is saved with it."""
    gmacs: float
    """Billions of multiply-accumulates of linear layers and convolutions; those of attention
    between tokens are not counted, as is usual in this field's tables."""
    num_tokens: int
    """Length of the sequence."""


def describe(config: DiTConfig) -> DiTDescription:
    """Counts parameters, multiply-accumulates and tokens of the model that a config describes."""
    with torch.device("meta"):
        model = DiT(config)
        noisy = Latents(
            video=torch.empty(1, *config.video_shape), audio=torch.empty(1, *config.audio_shape)
        )
        timesteps = torch.zeros(1)
        condition = condition_for("svg", noisy)
    num_macs: list[int] = []
    num_tokens: list[int] = []

    def count_macs(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        num_macs.append(_num_macs(layer, output))

    def count_tokens(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        num_tokens.append(inputs[0].shape[1])

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.register_forward_hook(count_macs)
    model.blocks[0].register_forward_pre_hook(count_tokens)
    with torch.no_grad():
        model(noisy, timesteps, condition)
    num_context_parameters = model.embedding.context.numel()
    num_all = sum(parameter.numel() for parameter in model.parameters())
    return DiTDescription(
        num_parameters=num_all - num_context_parameters,
        num_context_parameters=num_context_parameters,
        gmacs=sum(num_macs) / 1e9,
        num_tokens=num_tokens[0],
    )


def _num_macs(layer: nn.Module, output: Tensor) -> int:
    """Each output value is a product with one row of the weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return output.numel() * weight[0].numel()
