"""MM-LDM's diffusion transformer, which predicts the noise of both latents at once."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.diffusion.pair import Latents
from training.diffusion.tasks import Condition
from training.dit.config import DiTConfig
from training.dit.embedding import LatentTokens, TokenEmbedding
from training.dit.layers import Block, FinalLayer, Linear, TimestepEmbedding


class DiT(nn.Module):
    """Noisy video and audio latents to the noise in them.

    Every latent position is a token, and every token attends to every other. A fresh model
    predicts zero: each block starts as the identity, and the last layers start at zero.

    Args:
        config: The architecture.
        generator: What the parameters are drawn from, on their device; None is torch's global
            generator. Equal generators give equal parameters, and only this one is moved.

    Attributes:
        checkpoint_activations: Set it to keep only each block's input for the backward pass,
            which then runs each block forward again: less memory, more time.
    """

    def __init__(self, config: DiTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.timestep = TimestepEmbedding(config.width)
        self.embedding = TokenEmbedding(config)
        self.blocks = nn.ModuleList(
            Block(config.width, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.final_audio = FinalLayer(config.width, out_channels=config.latent_channels)
        self.final_video = FinalLayer(config.width, out_channels=config.latent_channels)
        for module in self.modules():
            if isinstance(module, Linear | LatentTokens | TokenEmbedding):
                module.draw(generator)

    def forward(self, noisy: Latents, timesteps: Tensor, condition: Condition) -> Latents:
        """The predicted noise of both latents, float32.

        Args:
            noisy: Both latents, noised at the same steps.
            timesteps: (batch,), in [0, 1000).
            condition: What else is known, for the same batch.

        Raises:
            ValueError: A shape is not the config's, or batches differ in size.
        """
        self._check_shapes(noisy, timesteps, condition)
        embedding = self.timestep(timesteps)
        tokens = self.embedding(noisy, condition)
        for block in self.blocks:
            tokens = self._run(block, tokens, embedding)
        video = self.final_video(tokens[:, self.config.video_tokens], embedding)
        audio = self.final_audio(tokens[:, self.config.audio_tokens], embedding)
        return Latents(video=_unrasterise(video), audio=_unrasterise(audio))

    def _run(self, block: nn.Module, tokens: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            again: Tensor = checkpoint(
                block, tokens, embedding, use_reentrant=False, preserve_rng_state=False
            )
            return again
        out: Tensor = block(tokens, embedding)
        return out

    def _check_shapes(self, noisy: Latents, timesteps: Tensor, condition: Condition) -> None:
        each = (len(noisy),)
        video_shape, audio_shape = each + self.config.video_shape, each + self.config.audio_shape
        for name, tensor, wanted in (
            ("noisy.video", noisy.video, video_shape),
            ("noisy.audio", noisy.audio, audio_shape),
            ("timesteps", timesteps, each),
            ("condition.has_context", condition.has_context, each),
            ("condition.has_audio", condition.has_audio, each),
            ("condition.has_video", condition.has_video, each),
            ("condition.latents.video", condition.latents.video, video_shape),
            ("condition.latents.audio", condition.latents.audio, audio_shape),
        ):
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {wanted}")


def _unrasterise(tokens: Tensor) -> Tensor:
    size = round(tokens.shape[1] ** 0.5)
    return rearrange(tokens, "b (row column) c -> b c row column", row=size)
