"""What was trained on a cache, as its report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evaluation.report.contents import model_name
from evaluation.report.dit import DiTContents, dit_contents
from evaluation.report.metrics import read_metrics
from evaluation.report.played import ClipWindows, ThreadedDecoder
from evaluation.report.samples import (
    SampleFile,
    SamplesContents,
    ShowSample,
    choose_shown,
    find_samples,
)
from evaluation.report.windows import (
    ShowWindow,
    WindowsContents,
    held_out_clips,
    windows_to_show,
)
from evaluation.sampling.decode import WindowDecoder
from evaluation.sampling.models import ModelSources, model_digests, require_autoencoder
from latents.cache.reader import CachedLevel, open_cache, require_recipe
from latents.cache.refs import read_recipe
from latents.cache.splits import share_held_out
from latents.errors import ConfigError
from latents.fields import LEVELS
from latents.models.autoencoder_files import Autoencoder, load_autoencoder
from latents.models.kl_vae import KLVAE
from latents.models.modal_encoder_files import modal_encoder_files
from latents.models.vocoder import griffin_lim
from pipeline.job import LatentScale
from pipeline.originals import Originals
from pipeline.recorded import Recorded, RecordedEncoding, recorded_encoding
from training.autoencoder_run import METRICS_FILE
from training.reconstruction import window_errors
from training.window_latents import WindowLatents


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModels:
    """What was trained on a cache, to be shown in its report."""

    autoencoder: str
    """As `load_modal_encoders` takes it, with a signal decoder."""
    dit: str | None = None
    """As `load_dit` takes it: a folder that ``mmldm train dit`` wrote."""
    samples: tuple[Path, ...] = ()
    """Folders that ``mmldm sample`` wrote."""
    validation_share: float = 0.1
    """Share of the sources that training held out, where people named no split."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"the validation share is {self.validation_share}; it must lie in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedContents:
    """All that the page shows of models."""

    windows: WindowsContents
    dit: DiTContents | None
    samples: SamplesContents | None


class ShowTrained:
    """Gathers what a page shows of models that were trained on a cache.

    Args:
        models: Which.
        level: The ``kl`` level.
        recorded: The settings it was made with.
        kl_vae: The KL-VAE that encoded it.
        kl_vae_source: Where that is.
        device: Where models run.
        num_threads: Threads that decode.

    Raises:
        CacheError: The cache has no ``perceptual`` level of this ``kl`` level.
        ModelError: The autoencoder cannot be loaded, or did not make the perceptual level.
    """

    def __init__(
        self,
        models: TrainedModels,
        level: CachedLevel,
        recorded: Recorded,
        kl_vae: KLVAE,
        *,
        kl_vae_source: str,
        device: str,
        num_threads: int,
    ) -> None:
        self._models, self._level, self._recorded = models, level, recorded
        self._kl_vae_source = kl_vae_source
        self._perceptual = open_cache(level.layout.url, level="perceptual")
        encoding = _encoding(level, self._perceptual)
        require_autoencoder(encoding, models.autoencoder)
        self._autoencoder: Autoencoder = load_autoencoder(models.autoencoder).to(device)
        kl_recorded = encoding.encoders.kl_vae
        self._scale = LatentScale(factor=kl_recorded.scaling_factor, shift=kl_recorded.shift_factor)
        self._decoder = WindowDecoder(
            signal_decoder=self._autoencoder.signal_decoder,
            kl_vae=ThreadedDecoder(kl_vae, num_threads=num_threads),
            vocode=partial(griffin_lim, spec=recorded.mel),
            scale=self._scale,
            recorded=recorded,
            device=device,
        )
        # Here, so that what is foreign or missing is said before anything is decoded.
        self._dit = self._read_dit()
        self._samples = find_samples(models.samples)

    def __call__(self, originals: Originals) -> TrainedContents:
        """Decodes and measures.

        Raises:
            CacheError: The cache holds no window.
            DamagedError: Latents are not what the log says.
            ConfigError: A sample cannot be read.
        """
        windows = ClipWindows(self._level, self._recorded, originals, self._decoder)
        return TrainedContents(
            windows=self._show_windows(windows, originals),
            dit=self._dit,
            samples=self._show_samples(windows, originals) if self._samples else None,
        )

    def _read_dit(self) -> DiTContents | None:
        if self._models.dit is None:
            return None
        share = share_held_out(self._level, self._models.validation_share)
        return dit_contents(self._models.dit, self._perceptual, validation_share=share)

    def _show_windows(self, windows: ClipWindows, originals: Originals) -> WindowsContents:
        held_out = held_out_clips(self._level, validation_share=self._models.validation_share)
        show = ShowWindow(
            self._perceptual,
            windows,
            originals,
            decoder=self._decoder,
            signal_decoder=self._autoencoder.signal_decoder,
            scale=self._scale,
        )
        return WindowsContents(
            autoencoder=model_name(self._models.autoencoder),
            split=held_out.split,
            num_windows=held_out.num_windows,
            errors=window_errors(self._autoencoder, WindowLatents(self._level, held_out.measured)),
            shown=tuple(
                show(clip, window) for clip, window in windows_to_show(held_out, self._perceptual)
            ),
            metrics=read_metrics(
                modal_encoder_files(self._models.autoencoder)[0].with_name(METRICS_FILE)
            ),
        )

    def _show_samples(self, windows: ClipWindows, originals: Originals) -> SamplesContents:
        show, chosen = ShowSample(self._level, windows, originals), choose_shown(self._samples)
        return SamplesContents(
            shown=tuple(show(sample) for sample in chosen),
            num_samples=len(self._samples),
            num_of_another_dit=self._num_of_another_dit(chosen),
        )

    def _num_of_another_dit(self, samples: list[SampleFile]) -> int | None:
        models = self._models
        if models.dit is None:
            return None
        sources = ModelSources(
            autoencoder=models.autoencoder, kl_vae=self._kl_vae_source, vocoder=None
        )
        digest = model_digests(models.dit, sources)["dit"]
        return sum(sample.made_by != digest for sample in samples)


def _encoding(level: CachedLevel, perceptual: CachedLevel) -> RecordedEncoding:
    """How the perceptual latents were made; refuses those of other KL latents."""
    layout = level.layout
    recipes = {
        field: read_recipe(layout, perceptual.recipes[field]) for field in LEVELS["perceptual"]
    }
    for recipe in recipes.values():
        for parent in recipe.parents:
            require_recipe(layout, parent.field, level.recipes, parent)
    return recorded_encoding(recipes, model=layout.url)
