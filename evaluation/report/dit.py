"""A trained DiT as a report shows it: how large it is, what it saw, and how its training went."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.report.contents import model_name
from evaluation.report.metrics import MetricsLine, read_metrics
from latents.cache.reader import CachedLevel, require_recipe
from latents.cache.splits import clips_of_split
from training.dit.describe import describe
from training.dit.files import BegunFrom, dit_files, load_dit
from training.dit.run import METRICS_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTContents:
    """All that is shown of a DiT."""

    name: str
    depth: int
    width: int
    num_parameters: int
    """Without the learned context, as MM-LDM counts them."""
    steps: int
    begun_from: BegunFrom | None
    num_windows: int
    """Of the train split, as the cache is now."""
    lines: tuple[MetricsLine, ...] | None
    """What its run noted; None where nothing of it is in the folder."""


def dit_contents(dit: str, perceptual: CachedLevel, *, validation_share: float) -> DiTContents:
    """Reads a DiT that was trained on latents such as these.

    Args:
        dit: As `load_dit` takes it.
        perceptual: The level.
        validation_share: Of the sources, where people named no split.

    Raises:
        ModelError: It cannot be loaded, or its metrics cannot be read.
        StaleFieldError: It was trained on latents of other recipes.
    """
    trained = load_dit(dit)
    for field, recipe in trained.trained_on.recipes.items():
        require_recipe(perceptual.layout, field, perceptual.recipes, recipe)
    config = trained.model.config
    clips = clips_of_split(perceptual, "train", validation_share=validation_share)
    return DiTContents(
        name=model_name(dit),
        depth=config.depth,
        width=config.width,
        num_parameters=describe(config).num_parameters,
        steps=trained.steps,
        begun_from=trained.begun_from,
        num_windows=clips.num_windows,
        lines=read_metrics(dit_files(dit)[0].with_name(METRICS_FILE)),
    )
