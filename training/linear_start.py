"""Where training a small autoencoder starts: as the best linear codec of patches.

The principal components of patches are what a linear code of as many numbers keeps best, the mean
frame of a window among what it could choose. A network that starts there has moving things and
their surroundings at once, and learns what is not linear.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from latents.models.autoencoder_files import Autoencoder
from latents.models.signal_decoder import AUDIO_STRIDE, VIDEO_STRIDE
from latents.whitening import Whitening
from training.window_latents import WindowBatch

_SPREAD_FLOOR = 0.1
"""Least length of a component, beside 1 of a whitened latent. A number of the code is divided by
it: that of a component that hardly occurs would be noise, enlarged."""


@torch.no_grad()
def start_as_linear_codec(
    autoencoder: Autoencoder,
    batch: WindowBatch,
    *,
    video_whitening: Whitening,
    audio_whitening: Whitening,
) -> None:
    """Gives a fresh autoencoder its whitening, and shortcuts that are a linear codec.

    Args:
        autoencoder: Its encoders have shortcuts.
        batch: Windows whose patches are analysed; some hundreds.
        video_whitening: Of scaled KL means.
        audio_whitening: Of scaled KL means.
    """
    decoder = autoencoder.signal_decoder
    decoder.video_whitening.copy_(_columns(video_whitening))
    decoder.audio_whitening.copy_(_columns(audio_whitening))
    key_frames = list(autoencoder.config.video_encoder.key_frames)
    video = rearrange(decoder.whiten_video(batch.video), "b t c h w -> b (t c) h w")
    _start(
        autoencoder.video_encoder.shortcut,
        decoder.video_shortcut,
        principal_patches(video, size=VIDEO_STRIDE, num=decoder.config.latent_channels),
        decoder.video_whitening.repeat(len(key_frames), 1),
    )
    _start(
        autoencoder.audio_encoder.shortcut,
        decoder.audio_shortcut,
        principal_patches(
            decoder.whiten_audio(batch.audio),
            size=AUDIO_STRIDE,
            num=decoder.config.latent_channels,
        ),
        decoder.audio_whitening,
    )


def principal_patches(images: Tensor, *, size: int, num: int) -> Tensor:
    """What the patches of some images are made of, by falling share.

    Args:
        images: (image, channel, row, column), their mean near 0.
        size: Rows, and columns, of a patch; patches do not overlap.
        num: How many components.

    Returns:
        float32 (num, channel, size, size), orthogonal. Each is as long as the spread of patches
        along it, at least 0.1.
    """
    patches = rearrange(images.double(), "b c (h p) (w q) -> (b h w) (c p q)", p=size, q=size)
    shares, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    shares, components = shares.flip(0)[:num], components.flip(1)[:, :num]
    # Either sign will do: this one does not depend on the library.
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    scaled = components * largest.sign() * shares.clamp(min=_SPREAD_FLOOR**2).sqrt()
    patch: Tensor = scaled.float().T.reshape(num, images.shape[1], size, size)
    return patch


def _start(
    encoder: nn.Conv2d | None, decoder: nn.ConvTranspose2d, components: Tensor, whitening: Tensor
) -> None:
    """A code of variance 1, from patches in the middle of each kernel."""
    if encoder is None or encoder.bias is None:
        raise ValueError("the encoders have no shortcut that could start as a linear codec")
    squares = components.square().sum(dim=(1, 2, 3), keepdim=True)
    mean, scale = whitening[..., None, None].unbind(1)
    analysis = components / squares / scale
    for layer, kernel in ((encoder, analysis), (decoder, components)):
        margin = (layer.kernel_size[0] - kernel.shape[-1]) // 2
        layer.weight.zero_()
        inner = layer.weight[..., margin : margin + kernel.shape[-1], :]
        inner[..., margin : margin + kernel.shape[-1]] = kernel
    encoder.bias.copy_(-(analysis * mean).sum(dim=(1, 2, 3)))


def _columns(whitening: Whitening) -> Tensor:
    return torch.tensor([whitening.mean, whitening.scale]).T
