"""Architecture of the diffusion transformer; the bundled sizes are ``configs/dit/*.toml``."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """The table ``[model]`` of a DiT preset.

    The shapes of tokens and latents default to MM-LDM's. Its paper counts the context tokens in
    its Table 4 without naming them; they are as in its code.
    """

    depth: int
    """Transformer blocks."""
    width: int
    """Channels of a token; a multiple of `num_heads` and of 4."""
    num_heads: int
    """Attention heads of a block."""
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP, in widths."""
    context_tokens: int = 77
    """Learned tokens at the front of the sequence."""
    context_width: int = 768
    """Channels of the learned context before it is projected to `width`."""
    latent_channels: int = 16
    """Channels of both latents."""
    video_size: int = 16
    """Rows, and columns, of a video latent; one token for each position."""
    audio_size: int = 8
    """Rows, and columns, of an audio latent; one token for each position."""
    zero_condition: bool = True
    """True, as in the paper: conditions enter through zero convolutions, and a null condition
    adds nothing. False, as in its code: the convolutions are drawn at random, with bias, and a
    null condition is a latent of zeros, which adds the bias."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "zero_condition":
                if type(value) is not bool:
                    raise ValueError(f"zero_condition is {value!r}; wanted true or false")
            elif type(value) is not int or value < 1:
                raise ValueError(f"{field.name} is {value!r}; wanted an integer from 1")
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}; wanted a multiple of {self.num_heads} heads")
        if self.width % 4:
            raise ValueError(
                f"width is {self.width}; wanted a multiple of 4, for sines and cosines of two axes"
            )

    @property
    def video_shape(self) -> tuple[int, int, int]:
        """(channel, row, column) of a video latent."""
        return self.latent_channels, self.video_size, self.video_size

    @property
    def audio_shape(self) -> tuple[int, int, int]:
        """(channel, row, column) of an audio latent."""
        return self.latent_channels, self.audio_size, self.audio_size

    @property
    def audio_tokens(self) -> slice:
        """Where the audio latent's tokens lie in the sequence, after the context and EOS_a."""
        first = self.context_tokens + 1
        return slice(first, first + self.audio_size**2)

    @property
    def video_tokens(self) -> slice:
        """Where the video latent's tokens lie in the sequence, after the audio and EOS_v."""
        first = self.audio_tokens.stop + 1
        return slice(first, first + self.video_size**2)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: context, EOS_a, audio, EOS_v, video."""
        return int(self.video_tokens.stop)
