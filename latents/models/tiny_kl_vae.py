"""The tiny KL-VAE: its architecture, and initial weights that already code colour.

From random weights such a network is grey for a long time. Started as a colour codec, where the
latent is the picture's RGB at an eighth of its size, training only has to add detail.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latents.models.kl_vae_files import AutoencoderKL

BLOCK_OUT_CHANNELS = (32, 32, 64, 96)
_NORM_GROUPS = 4
_LATENT_CHANNELS = 4
_CONSTANT = 8.0
"""Height of a pair of constant channels before each output norm. It dominates the variance of
their group, so that GroupNorm is nearly linear in the colours (2 % off for pure white). It exists
only there: a constant that convolutions read would turn every optimiser step into a flash."""
_NUM_CODE = 6
"""Channels +R, -R, +G, -G, +B, -B; they lie in the first norm group."""
_FIRST_LOGVAR = -6.0
_FREE_LATENT_GAIN = 4.0


def tiny_architecture() -> dict[str, object]:
    """Arguments of ``AutoencoderKL``: 1/8 of the size, 4 latent channels, 1.7 M parameters."""
    levels = len(BLOCK_OUT_CHANNELS)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": BLOCK_OUT_CHANNELS,
        "layers_per_block": 1,
        "latent_channels": _LATENT_CHANNELS,
        "norm_num_groups": _NORM_GROUPS,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
        "force_upcast": False,
    }


def build_tiny_autoencoder(seed: int) -> AutoencoderKL:
    """A tiny autoencoder that starts as a colour codec; equal seeds give equal weights.

    The latent's first three channels are the picture's RGB averaged over 8x8 pixels, the fourth
    is a random feature, and decoding is smooth upsampling of the first three.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder: AutoencoderKL = AutoencoderKL(**tiny_architecture())
    with torch.no_grad():
        _start_as_colour_codec(autoencoder)
    return autoencoder


def _start_as_colour_codec(autoencoder: Any) -> None:
    for module in autoencoder.modules():
        if type(module).__name__ == "ResnetBlock2D":
            _pass_through(module)
    _start_encoder(autoencoder.encoder)
    _start_decoder(autoencoder.decoder)
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _pass_through(block: Any) -> None:
    """Let a residual block start as the identity on the code channels."""
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    if block.conv_shortcut is not None:
        _copy_code(block.conv_shortcut, torch.ones(1, 1))


def _start_encoder(encoder: Any) -> None:
    _write_colours(encoder.conv_in)
    for block in encoder.down_blocks:
        for downsampler in block.downsamplers or ():
            mean = torch.zeros(3, 3)
            mean[:2, :2] = 0.25
            _copy_code(downsampler.conv, mean)
    _keep_scale(encoder.conv_norm_out, encoder.mid_block.resnets[-1])
    free_row = encoder.conv_out.weight[3].clone()
    nn.init.zeros_(encoder.conv_out.weight)
    nn.init.zeros_(encoder.conv_out.bias)
    _read_colours(encoder.conv_out)
    encoder.conv_out.weight[3] = _FREE_LATENT_GAIN * free_row
    encoder.conv_out.bias[_LATENT_CHANNELS:] = _FIRST_LOGVAR


def _start_decoder(decoder: Any) -> None:
    _write_colours(decoder.conv_in)
    tent = torch.tensor([1.0, 2.0, 1.0]) / 4
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            _copy_code(upsampler.conv, torch.outer(tent, tent))
    _keep_scale(decoder.conv_norm_out, decoder.up_blocks[-1].resnets[-1])
    nn.init.zeros_(decoder.conv_out.weight)
    nn.init.zeros_(decoder.conv_out.bias)
    _read_colours(decoder.conv_out)


def _write_colours(conv: Any) -> None:
    """Code channels from the first three inputs; the others keep their random features."""
    conv.weight[:_NUM_CODE] = 0
    conv.bias[:_NUM_CODE] = 0
    for colour in range(3):
        conv.weight[2 * colour, colour, 1, 1] = 1
        conv.weight[2 * colour + 1, colour, 1, 1] = -1


def _read_colours(conv: Any) -> None:
    """First three outputs from the code channels, by silu(h) - silu(-h) = h."""
    for colour in range(3):
        conv.weight[colour, 2 * colour, 1, 1] = 1
        conv.weight[colour, 2 * colour + 1, 1, 1] = -1


def _copy_code(conv: Any, kernel: Tensor) -> None:
    """Filter each code channel with ``kernel``; the others keep their random features."""
    conv.weight[:_NUM_CODE] = 0
    conv.bias[:_NUM_CODE] = 0
    for channel in range(_NUM_CODE):
        conv.weight[channel, channel] = kernel


def _keep_scale(norm: Any, last_block: Any) -> None:
    """Make an output norm pass the code unscaled, by constants that it then drops."""
    constants = torch.tensor([_CONSTANT, -_CONSTANT])
    last_block.conv2.bias[_NUM_CODE : _NUM_CODE + 2] = constants
    group = norm.num_channels // _NORM_GROUPS
    norm.weight[:group] = (2 * _CONSTANT**2 / group) ** 0.5
    norm.weight[_NUM_CODE : _NUM_CODE + 2] = 0
