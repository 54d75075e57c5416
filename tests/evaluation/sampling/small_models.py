"""A small DiT, autoencoder and KL-VAE that belong together, for windows of 4 small frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.sampling.decode import WindowDecoder
from evaluation.sampling.models import ModelSources, load_window_decoder
from latents.models.autoencoder_files import Autoencoder, AutoencoderConfig, save_autoencoder
from latents.models.encoder_blocks import draw_weights
from latents.models.modal_encoder_config import AudioEncoderConfig, VideoEncoderConfig
from latents.models.signal_decoder import SignalDecoderConfig
from latents.recipe import Recipe
from latents.whitening import Whitening
from pipeline.recipes import perceptual_recipes
from pipeline.recorded import RecordedEncoding, recorded_encoding
from tests.pipeline.small_jobs import SmallJob
from training.dit.batches import PairWhitening
from training.dit.config import DiTConfig
from training.dit.files import TrainedDiT, TrainedOn, load_dit, save_dit
from training.dit.model import DiT
from training.dit.settings import DiffusionSettings

FRAMES = 4
NUM_SAMPLES = 8820
"""Of the mel's 22050 Hz beside four frames at 10 fps."""
WINDOWS = (f"window.frames={FRAMES}", "window.stride=2")
"""Overrides of an ingest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallModels:
    """Folders of models that belong together, and the job that makes their latents."""

    dit: Path
    sources: ModelSources
    job: SmallJob

    @property
    def trained(self) -> TrainedDiT:
        return load_dit(self.dit)

    @property
    def encoding(self) -> RecordedEncoding:
        return recorded_encoding(self.trained.trained_on.recipes, model="the DiT")

    @property
    def decoder(self) -> WindowDecoder:
        return self.decoder_of(self.sources)

    def decoder_of(self, sources: ModelSources) -> WindowDecoder:
        config = self.trained.model.config
        return load_window_decoder(config, self.encoding, sources, device="cpu")


def make_models(folder: Path, kl_vae: Path, *, mel: str = "hifigan22k") -> SmallModels:
    """Untrained ones, all of whose outputs depend on all of their inputs."""
    autoencoder = make_autoencoder(folder / "autoencoder")
    job = SmallJob(
        kl_vae=kl_vae,
        autoencoder=autoencoder,
        levels=("kl", "perceptual"),
        overrides=(*WINDOWS, f'mel.name="{mel}"'),
    )
    make_dit(folder / "dit", perceptual_recipes(job.settings, job.encoders))
    sources = ModelSources(autoencoder=str(autoencoder), kl_vae=str(kl_vae), vocoder=None)
    return SmallModels(dit=folder / "dit", sources=sources, job=job)


def make_autoencoder(folder: Path, *, encoder_seed: int = 0, decoder_seed: int = 0) -> Path:
    """A folder with both encoders and a signal decoder, each drawn by its seed."""
    config = AutoencoderConfig(
        video_encoder=VideoEncoderConfig(
            in_size=4,
            frames=FRAMES,
            key_frames=(0, FRAMES - 1),
            channels=4,
            num_res_blocks=1,
            attention_sizes=(),
            norm_groups=4,
        ),
        audio_encoder=AudioEncoderConfig(
            channels=4,
            multipliers=(1, 1, 1),
            num_res_blocks=1,
            attention_sizes=(),
            norm_groups=4,
        ),
        signal_decoder=SignalDecoderConfig(
            frames=FRAMES, channels=8, coarse_blocks=1, fine_blocks=1
        ),
    )
    autoencoder = Autoencoder(config)
    for encoder in (autoencoder.video_encoder, autoencoder.audio_encoder):
        draw_weights(encoder, key=f"{encoder_seed}/encoder", start="live")
    draw_weights(autoencoder.signal_decoder, key=f"{decoder_seed}/decoder", start="live")
    save_autoencoder(folder, autoencoder)
    return folder


def make_dit(folder: Path, recipes: Mapping[str, Recipe]) -> None:
    """A DiT that was trained on nothing."""
    config = DiTConfig(
        depth=1, width=32, num_heads=2, context_tokens=2, context_width=8, video_size=2
    )
    model = DiT(config, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # what starts at zero would hide the condition and the timestep
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for tokens in (model.embedding.video, model.embedding.audio):
            tokens.condition.weight.normal_(generator=generator)
    plain = Whitening(mean=(0.0,) * 16, std=(1.0,) * 16)
    trained = TrainedDiT(
        model=model,
        diffusion=DiffusionSettings(),
        whitening=PairWhitening(video=plain, audio=plain),
        trained_on=TrainedOn(caches=(), recipes=recipes),
        steps=0,
    )
    save_dit(folder, trained)
