"""The encoders' layers reach as far as they should, and compute what they are named for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latents.models.encoder_blocks import (
    Attention,
    GroupNorm,
    ResBlock,
    SpatialAttention,
    TemporalAttention,
    draw_weights,
)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: nn.Module) -> nn.Module:
    draw_weights(model, key="test", start="live")
    return model.requires_grad_(False)


def test_attention_is_softmax_of_scaled_products_in_each_head() -> None:
    attention = Attention(8, head_channels=4, norm_groups=4)
    drawn(attention)
    x = noise(1, 8, 5)
    normal = attention.norm(x)[0].T
    mixed = []
    # Head by head, each has its queries, keys and values side by side.
    for head in (slice(0, 12), slice(12, 24)):
        qkv = normal @ attention.qkv.weight[head].T + attention.qkv.bias[head]
        q, k, v = torch.chunk(qkv, 3, dim=1)
        mixed.append(((q * 4**-0.25) @ (k * 4**-0.25).T).softmax(dim=1) @ v)
    expected = x[0] + attention.out(torch.cat(mixed, dim=1)).T
    torch.testing.assert_close(attention(x)[0], expected, atol=1e-6, rtol=1e-5)


def changed_at(layer: nn.Module, frame: int, row: int) -> Tensor:
    """Where (time, row) the output changes when the input does at one frame and row."""
    x = noise(1, 8, 3, 8, 8)
    other = x.clone()
    other[:, :, frame, row] = noise(8, 8, seed=3)
    change: Tensor = layer(x) != layer(other)
    return change.any(dim=1)[0].any(dim=2)


@pytest.mark.parametrize(
    "layer",
    [ResBlock(8, 16, norm_groups=4), SpatialAttention(8, head_channels=4, norm_groups=4)],
    ids=["residual block", "spatial attention"],
)
def test_layers_in_space_keep_to_a_frame(layer: nn.Module) -> None:
    changed = changed_at(drawn(layer), frame=1, row=2)
    assert changed.any(dim=1).tolist() == [False, True, False]
    assert changed[1].all()  # the norm and attention reach the whole frame


def test_temporal_attention_keeps_to_a_position() -> None:
    layer = drawn(TemporalAttention(8, head_channels=4, norm_groups=4))
    changed = changed_at(layer, frame=1, row=2)
    assert changed.all(dim=0).nonzero().flatten().tolist() == [2]
    assert changed.any(dim=0).nonzero().flatten().tolist() == [2]


def test_norms_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    group_norm = nn.functional.group_norm

    def watched(x: Tensor, *settings: Any) -> Tensor:
        seen.append(x.dtype)
        return group_norm(x, *settings)

    monkeypatch.setattr(nn.functional, "group_norm", watched)
    x = noise(1, 8, 6, 6)
    normal = GroupNorm(8, groups=32).bfloat16()(x.bfloat16())
    assert (seen, normal.dtype) == ([torch.float32], torch.bfloat16)
    assert torch.equal(normal, group_norm(x.bfloat16().float(), 8).bfloat16())


def test_every_tensor_is_drawn_by_itself() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    drawn(nn.Sequential(first, second))
    assert not torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight.flatten()[:8], first.bias)
    # Uniform within 1 / sqrt(8), as torch's own layers are.
    assert 0.3 < first.weight.abs().max() < 8**-0.5
