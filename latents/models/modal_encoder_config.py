"""Architectures of the modal encoders: MM-LDM's, and a tiny one with latents of the same shape."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

ConfigName = Literal["full", "tiny"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoEncoderConfig:
    """Architecture of a video encoder; the defaults are MM-LDM's."""

    in_channels: int = 4
    """Channels of a KL latent."""
    in_size: int = 32
    """Rows, and columns, of a KL latent."""
    frames: int = 16
    """Frames of a window."""
    key_frames: tuple[int, ...] = (0, 5, 10, 15)
    """Which of them are read, ascending."""
    channels: int = 320
    """Channels at full size; each level has a multiple."""
    multipliers: tuple[int, ...] = (1, 2)
    """One per level; each level after the first has half the size."""
    num_res_blocks: int = 2
    """Residual blocks of a level."""
    attention_sizes: tuple[int, ...] = (32, 16)
    """Levels of this size have attention, in space and then in time, after each block."""
    head_channels: int = 64
    """Channels of an attention head."""
    norm_groups: int = 32
    """Groups of a group norm; layers with fewer channels have as many groups."""
    out_channels: int = 16
    """Channels of the perceptual latent; moments have twice as many."""
    shortcut_kernel: int = 0
    """Rows, and columns, of the kernel of a linear way past the trunk to the mean; 0 for none, as
    in MM-LDM. A small encoder that has it starts as a linear codec and learns the rest."""

    def __post_init__(self) -> None:
        _check(self)
        in_order = sorted(set(self.key_frames) & set(range(self.frames)))
        if not self.key_frames or list(self.key_frames) != in_order:
            raise ValueError(
                f"key_frames is {self.key_frames}; wanted ascending indices below {self.frames}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioEncoderConfig:
    """Architecture of an audio encoder; the defaults are MM-LDM's."""

    in_channels: int = 4
    """Channels of a KL latent."""
    in_size: int = 32
    """Rows, and columns, of a KL latent."""
    channels: int = 320
    """Channels at full size; each level has a multiple."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """One per level; each level after the first has half the size."""
    num_res_blocks: int = 2
    """Residual blocks of a level."""
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    """Levels of this size have attention after each block."""
    head_channels: int = 64
    """Channels of an attention head."""
    norm_groups: int = 32
    """Groups of a group norm; layers with fewer channels have as many groups."""
    out_channels: int = 16
    """Channels of the perceptual latent; moments have twice as many."""
    shortcut_kernel: int = 0
    """Rows, and columns, of the kernel of a linear way past the trunk to the mean; 0 for none, as
    in MM-LDM. A small encoder that has it starts as a linear codec and learns the rest."""

    def __post_init__(self) -> None:
        _check(self)


def _check(config: VideoEncoderConfig | AudioEncoderConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        lowest = 0 if field.name in ("key_frames", "shortcut_kernel") else 1
        if any(type(number) is not int or number < lowest for number in numbers):
            raise ValueError(f"{field.name} is {value!r}; wanted integers from {lowest}")
    if not config.multipliers:
        raise ValueError("multipliers is empty; wanted one for each level")
    sizes = [config.in_size >> level for level in range(len(config.multipliers))]
    if config.in_size % 2 ** (len(sizes) - 1):
        raise ValueError(f"in_size is {config.in_size}; it is not halved {len(sizes) - 1} times")
    if set(config.attention_sizes) - set(sizes):
        raise ValueError(
            f"attention_sizes is {config.attention_sizes}; the levels have sizes {sizes}"
        )
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    for channels in (config.channels, *widths, config.out_channels):
        if channels % min(config.norm_groups, channels):
            raise ValueError(f"{channels} channels do not divide into {config.norm_groups} groups")
    stride = 2 ** (len(sizes) - 1)
    if config.shortcut_kernel and (
        config.shortcut_kernel < stride or (config.shortcut_kernel - stride) % 2
    ):
        raise ValueError(
            f"shortcut_kernel is {config.shortcut_kernel}; wanted 0, or {stride} and an even number"
        )
    for size, width in zip(sizes, widths, strict=True):
        if size in config.attention_sizes and width % config.head_channels:
            raise ValueError(f"{width} channels are not heads of {config.head_channels}")


VIDEO_CONFIGS: dict[ConfigName, VideoEncoderConfig] = {
    "full": VideoEncoderConfig(),
    "tiny": VideoEncoderConfig(
        channels=4, num_res_blocks=1, attention_sizes=(16,), head_channels=4, norm_groups=4
    ),
}
"""MM-LDM's video encoder, and one of the same shapes for tests and demonstrations on a CPU."""

AUDIO_CONFIGS: dict[ConfigName, AudioEncoderConfig] = {
    "full": AudioEncoderConfig(),
    "tiny": AudioEncoderConfig(
        channels=8,
        multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_sizes=(16, 8),
        head_channels=4,
        norm_groups=4,
    ),
}
"""MM-LDM's audio encoder, and one of the same shapes for tests and demonstrations on a CPU."""
